# SPDX-License-Identifier: Apache-2.0
"""What every algorithm is: a plan made from a graph, then a controller for the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from nncf.compression.controller import Controller
from nncf.compression.layout import Layout, OpDescription
from nncf.graph.graph import Graph


@dataclass(frozen=True)
class Given:
    """The model as it was given, before any algorithm has touched it.

    ``forward(model)`` runs a model on the example inputs and returns its outputs; ``config`` is
    the user's NNCFConfig, ``backend`` the backend's module and ``home`` the algorithm's file for the
    backend. Inside ``attempt(layout)`` the ops of
    a layout of this algorithm run in the model, in their first state; afterwards they are gone.
    """

    model: Any
    graph: Graph
    forward: Callable[[Any], Any]
    config: Any
    backend: Any
    layout: Layout
    home: Any
    attempt: Callable[[Layout], AbstractContextManager[Compressed]]


@dataclass(frozen=True)
class Compressed:
    """What a backend hands to an algorithm once its ops run in the model.

    ``ops`` are this algorithm's running CompressionOps by Insert name (their class comes from
    the algorithm's own file for the backend), ``graph`` and ``layout`` what they were planned
    on, ``config`` the user's NNCFConfig with its loaders, ``backend`` the backend's module.
    ``direct_parameters`` names, by Insert name, the parameters that reach their op as they are.
    ``parameter_shapes`` has the shapes of the model's own parameters by name, ``home`` is the
    algorithm's file for the backend, and ``notes`` a place in the model for what strip needs.
    ``prepared`` is what the algorithm's ``prepare`` returned.
    """

    model: Any
    ops: Mapping[str, Any]
    graph: Graph
    layout: Layout
    config: Any
    backend: Any
    direct_parameters: Mapping[str, Sequence[str]]
    parameter_shapes: Mapping[str, tuple[int, ...]]
    home: Any
    notes: dict[str, Any]
    prepared: Any = None

    def parameter(self, name: str) -> Any:
        """Return the values of one of the model's own parameters, as its op sees them."""
        return self.backend.parameter(self.model, name)


class Algorithm(ABC):
    """Decides where CompressionOps go; afterwards initialises and controls them.

    A subclass lives in ``algorithms/<name>/algorithm.py``; its options are the folder's Options.
    ``changes_values`` says that it changes single values of the weights that it has, so that it
    cannot share them with an algorithm that ``claims_values``, to which they belong alone.
    """

    name: ClassVar[str]
    changes_values: ClassVar[bool] = False
    claims_values: ClassVar[bool] = False

    def __init__(self, options: Any, root: Any) -> None:
        self.options = options
        self.root = root

    @abstractmethod
    def plan(self, graph: Graph) -> Layout:
        """Return the insertions this algorithm wants, without touching the model."""

    @staticmethod
    @abstractmethod
    def op_from_state(state: Mapping[str, Any]) -> OpDescription:
        """Rebuild one op description from ``OpDescription.to_state()``."""

    def refine(self, given: Given) -> Layout:
        """Return the layout with what only the model and the data can tell, the model as it was.

        Called after ``plan``, not when state is restored.
        """
        return given.layout

    def prepare(self, given: Given) -> Any:  # noqa: ARG002  # most need nothing
        """Return what is needed of the model as it was given, and leave that as it is.

        Called once for every model, also when state is restored; ``Compressed.prepared`` has it.
        """
        return None

    def initialize(self, compressed: Compressed) -> None:  # noqa: B027  # most need no data
        """Set the ops' parameters from data; called once, not when state is restored."""

    @abstractmethod
    def control(self, compressed: Compressed) -> Controller:
        """Return the controller of the running ops."""
