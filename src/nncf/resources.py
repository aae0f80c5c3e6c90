# SPDX-License-Identifier: Apache-2.0
"""What a configuration cannot write as JSON: loaders, criteria and functions of the user.

They are registered on an ``NNCFConfig`` (``register_default_init_args``), travel with it in
``config.resources`` and are never copied: a copy of a configuration shares its loaders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

Struct = TypeVar("Struct")


class NNCFDataLoader(ABC):
    """A loader that says itself how the model is called.

    Iterating yields ``(input, keywords)``: the model's single positional input and a dict of
    the rest. A tuple as input is several positional inputs.
    """

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Samples in one batch."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield ``(input, keywords)`` for each batch."""


@dataclass(frozen=True)
class QuantizationRangeInitArgs:
    """Data over which ranges are initialised; ``device`` None means that of the model."""

    data_loader: Iterable[Any]
    device: Any = None
    batch_size: int | None = None


@dataclass(frozen=True)
class BNAdaptationInitArgs:
    """Data over which batch norm statistics are refreshed."""

    data_loader: Iterable[Any]
    device: Any = None
    batch_size: int | None = None


@dataclass(frozen=True)
class ModelEvaluationArgs:
    """``eval_fn(model) -> float`` returns the accuracy of a model."""

    eval_fn: Callable[[Any], float]


@dataclass(frozen=True)
class QuantizationPrecisionInitArgs:
    """What the sensitivity of layers is measured with: ``criterion_fn(outputs, target, criterion)``."""

    criterion_fn: Callable[[Any, Any, Any], Any]
    criterion: Any
    data_loader: Iterable[Any]
    device: Any = None


@dataclass(frozen=True)
class AutoQPrecisionInitArgs:
    """What policies are judged with: ``eval_fn(model, data_loader) -> float``."""

    data_loader: Iterable[Any]
    eval_fn: Callable[[Any, Any], float]


@dataclass(frozen=True)
class LeGRInitArgs:
    """What the learned ranking trains and judges candidates with.

    ``train_fn(loader, model, optimizer, compression_ctrl, steps)``;
    ``val_fn(model, loader) -> (accuracy, loss)``; ``train_optimizer(parameters)`` returns an
    optimizer, None means stochastic gradient descent.
    """

    train_loader: Iterable[Any]
    train_fn: Callable[..., Any]
    val_loader: Iterable[Any]
    val_fn: Callable[..., Any]
    train_optimizer: Callable[..., Any] | None = None


@dataclass(frozen=True)
class TeacherArgs:
    """The model that teaches the compressed one; without it the model as it was given does."""

    model: Any


@dataclass(frozen=True)
class DistributedCallbacksArgs:
    """How a model is made parallel and back, while initialisation runs it."""

    wrap_model: Callable[[Any], Any]
    unwrap_model: Callable[[Any], Any]


@dataclass(frozen=True)
class ExecutionParameters:
    """Where initialisation runs: on the CPU only, or on the GPU of this number."""

    cpu_only: bool
    current_gpu: int | None = None


class Resources:
    """The registered structs of a configuration, one of each class."""

    def __init__(self, structs: Iterable[object] = ()) -> None:
        self._structs: dict[type, object] = {}
        self.register(structs)

    def register(self, structs: Iterable[object]) -> None:
        """Register structs; one of a class that is there already takes its place."""
        for struct in structs:
            self._structs[type(struct)] = struct

    def get(self, kind: type[Struct]) -> Struct | None:
        """Return the struct of class ``kind``, or None."""
        found = self._structs.get(kind)
        return found if isinstance(found, kind) else None

    def __contains__(self, kind: type) -> bool:
        return kind in self._structs

    def __iter__(self) -> Iterator[object]:
        return iter(self._structs.values())

    def __len__(self) -> int:
        return len(self._structs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self)

    def __repr__(self) -> str:
        return f"Resources({', '.join(kind.__name__ for kind in self._structs)})"
