# SPDX-License-Identifier: Apache-2.0
"""What is known of a compressed model: its layout, its ops, where its weights are."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.layout import Layout
from nncf.errors import NotCompressed
from nncf.tensorflow.capture import Capture


@dataclass
class Record:
    """A compressed model's layout, running ops by Insert name, and capture.

    ``baked`` names by Insert the parameters that pass through it, ``trained`` has the ids of the
    variables that layers created as trainable, ``notes`` is a place for what strip needs to know
    of the algorithms.
    """

    layout: Layout
    ops: Mapping[str, Any]
    captured: Capture
    baked: Mapping[str, tuple[str, ...]]
    trained: frozenset[int] = frozenset()
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables of the user's layers by the names that Parameters have."""
        return self.captured.variables

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the variables that layers have created for training, frozen ones too."""
        return tuple(
            name for name, variable in self.variables.items() if id(variable) in self.trained
        )

    def parameter(self, name: str) -> NDArray[Any]:
        """Return a variable's values, a weight's in the shape in which ops see it."""
        variable = self.variables[name]
        values = np.asarray(variable.numpy())
        return values.reshape(self._shapes.get(id(variable), values.shape))

    @cached_property
    def _shapes(self) -> dict[int, tuple[int, ...]]:
        return {id(p.variable): p.use.shape for p in self.captured.weights.values()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all trained variables, of weights as ops see them."""
        seen = {id(place.variable): place.use.shape for place in self.captured.weights.values()}
        return {
            name: seen.get(id(variable), tuple(variable.shape))
            for name, variable in self.variables.items()
            if variable.trainable
        }

    def weights_of(self, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the name and the values of each weight that passes through an op, as it is seen."""
        seen = set()
        insert = next(item for item in self.layout if item.name == name)
        for point in insert.points:
            place = self.captured.weights.get((point.address, point.port))
            if point.kind == "weight" and place is not None and id(place.variable) not in seen:
                seen.add(id(place.variable))
                values = np.asarray(place.variable.numpy())
                yield place.variable.path, values.reshape(place.use.shape)


_RECORDS: weakref.WeakKeyDictionary[Any, Record] = weakref.WeakKeyDictionary()


def remember(model: Any, record: Record) -> None:
    """Keep what is known of a model as long as it lives."""
    _RECORDS[model] = record


def record_of(model: Any) -> Record:
    """Return what is known of a model. Raises NotCompressed for any other."""
    try:
        return _RECORDS[model]
    except KeyError:
        raise NotCompressed(
            f"{type(model).__name__} {model.name} is not a model that create_compressed_model "
            "returned in this process."
        ) from None
