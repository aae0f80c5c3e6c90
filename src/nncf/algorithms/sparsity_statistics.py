# SPDX-License-Identifier: Apache-2.0
"""Statistics that the sparsity algorithms share: how many weights are zero, per layer and in all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from nncf.compression.statistics import grid


@dataclass(frozen=True)
class Zeros:
    """One tensor's name and shape, and how many of its elements are zero."""

    name: str
    shape: tuple[int, ...]
    zeros: int

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class SparsifiedLayerSummary:
    """One sparsified layer; ``weight_percentage`` is its part of all sparsified weights."""

    name: str
    weight_shape: tuple[int, ...]
    sparsity_level: float
    weight_percentage: float


@dataclass(frozen=True)
class SparsifiedModelStatistics:
    """Shares of zeros: in all parameters of the model, in the sparsified layers, in each layer."""

    sparsity_level: float
    sparsity_level_for_layers: float
    sparsified_layers_summary: tuple[SparsifiedLayerSummary, ...]

    def to_str(self) -> str:
        whole = [
            ["Sparsity level of the whole model", number(self.sparsity_level)],
            ["Sparsity level of all sparsified layers", number(self.sparsity_level_for_layers)],
        ]
        layers = [
            [item.name, list(item.weight_shape), number(item.sparsity_level),
             number(item.weight_percentage)]
            for item in self.sparsified_layers_summary
        ]  # fmt: skip
        header = ["Layer's name", "Weight's shape", "Sparsity level", "Weight's percentage"]
        return (
            "Statistics of the sparsified model:\n"
            + grid(["Statistic's name", "Value"], whole)
            + "\n\nStatistics by sparsified layers:\n"
            + grid(header, layers)
        )


def number(value: float) -> str:
    """Return a level or a percentage as the tables print it."""
    return f"{value:.3f}"


def collect(sparsified: Iterable[Zeros], others: Iterable[Zeros]) -> SparsifiedModelStatistics:
    """Count zeros. ``others`` are all parameters of the model that are not sparsified.

    A model without parameters, or without sparsified layers, has the level 0.
    """
    layers = list(sparsified)
    every = [*layers, *others]
    weights = sum(layer.size for layer in layers)
    return SparsifiedModelStatistics(
        sparsity_level=_level(every),
        sparsity_level_for_layers=_level(layers),
        sparsified_layers_summary=tuple(
            SparsifiedLayerSummary(
                layer.name, layer.shape, _level([layer]), _share(100 * layer.size, weights)
            )
            for layer in layers
        ),
    )


def _level(tensors: list[Zeros]) -> float:
    return _share(sum(tensor.zeros for tensor in tensors), sum(tensor.size for tensor in tensors))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def tensorboard(
    algorithm: str, model: SparsifiedModelStatistics, further: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the numbers to draw over time, by their tags; ``further`` are the algorithm's own."""
    found = {
        "sparsity_level_for_model": model.sparsity_level,
        "sparsity_level_for_sparsified_layers": model.sparsity_level_for_layers,
        **(further or {}),
    }
    return {f"{algorithm}/{name}": value for name, value in found.items()}
