# SPDX-License-Identifier: Apache-2.0
"""Statistics of filter pruning: what is gone of operations, parameters and filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nncf.algorithms.filter_pruning.costs import Cost
from nncf.compression.statistics import grid


@dataclass(frozen=True)
class PrunedLayer:
    """One layer: shape of its weight, of the mask on its filters, and how many are gone."""

    name: str
    weight_shape: tuple[int, ...]
    mask_shape: tuple[int, ...]
    filter_pruning_level: float


@dataclass(frozen=True)
class PrunedModelStatistics:
    """Costs of the model, whole and with what is left; levels are 1 − current / full."""

    full: Cost
    current: Cost
    pruned_layers_summary: Sequence[PrunedLayer]

    @property
    def flops_pruning_level(self) -> float:
        return _level(self.current.flops, self.full.flops)

    @property
    def params_pruning_level(self) -> float:
        return _level(self.current.parameters, self.full.parameters)

    @property
    def filter_pruning_level(self) -> float:
        return _level(self.current.filters, self.full.filters)

    def to_str(self) -> str:
        layers = [
            (
                layer.name,
                list(layer.weight_shape),
                list(layer.mask_shape),
                f"{layer.filter_pruning_level:.3f}",
            )
            for layer in self.pruned_layers_summary
        ]
        rows = [
            _row("GFLOPs", self.full.flops, self.current.flops, 1e9),
            _row("MParams", self.full.parameters, self.current.parameters, 1e6),
            _row("Filters", self.full.filters, self.current.filters, 1),
        ]
        return (
            "Statistics by pruned layers:\n"
            + grid(
                ["Layer's name", "Weight's shape", "Mask's shape", "Filter pruning level"], layers
            )
            + "\n\nStatistics of the pruned model:\n"
            + grid(["#", "Full", "Current", "Pruning level"], rows)
            + "\nPrompt: statistic pruning level = 1 - statistic current / statistic full."
        )


@dataclass(frozen=True)
class FilterPruningStatistics:
    """Where the schedule stands, and what is left of the model.

    Levels are shares of filters, or of FLOPs with ``prune_flops``.
    """

    model_statistics: PrunedModelStatistics
    current_pruning_level: float
    target_pruning_level: float
    prune_flops: bool

    def to_str(self) -> str:
        what = "FLOPs" if self.prune_flops else "filter"
        rows = [
            (f"{what} pruning level", f"{self.current_pruning_level:.3f}"),
            (
                f"{what} pruning level that the schedule asks for now",
                f"{self.target_pruning_level:.3f}",
            ),
        ]
        return (
            self.model_statistics.to_str()
            + "\n\nStatistics of the filter pruning algorithm:\n"
            + grid(["Statistic's name", "Value"], rows)
        )

    def tensorboard(self) -> dict[str, float]:
        model = self.model_statistics
        return {
            "filter_pruning/algo_current_pruning_level": self.current_pruning_level,
            "filter_pruning/model_FLOPS_pruning_level": model.flops_pruning_level,
            "filter_pruning/model_params_pruning_level": model.params_pruning_level,
            "filter_pruning/model_filters_pruning_level": model.filter_pruning_level,
        }


def _level(current: float, full: float) -> float:
    return 1 - current / full if full else 0.0


def _row(name: str, full: float, current: float, unit: float) -> tuple[str, str, str, str]:
    shown = [f"{value / unit:.4g}" if unit > 1 else f"{value:.0f}" for value in (full, current)]
    return name, *shown, f"{_level(current, full):.3f}"
