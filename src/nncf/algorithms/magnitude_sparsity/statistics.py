# SPDX-License-Identifier: Apache-2.0
"""Statistics of magnitude sparsity: levels reached and asked for, and where the thresholds are."""

from __future__ import annotations

from dataclasses import dataclass

from nncf.algorithms import sparsity_statistics
from nncf.algorithms.sparsity_statistics import SparsifiedModelStatistics, number
from nncf.compression.statistics import grid


@dataclass(frozen=True)
class LayerThreshold:
    """The importance up to which weights of a layer were dropped, 0 when none was."""

    name: str
    threshold: float


@dataclass(frozen=True)
class MagnitudeSparsityStatistics:
    """What is zero, what level was asked for last, and the threshold of each layer."""

    model_statistics: SparsifiedModelStatistics
    thresholds: tuple[LayerThreshold, ...]
    target_sparsity_level: float

    def to_str(self) -> str:
        asked = "A target level of the sparsity for the algorithm for the current epoch"
        rows = [[item.name, f"{item.threshold:.3e}"] for item in self.thresholds]
        return (
            self.model_statistics.to_str()
            + "\n\nStatistics of the magnitude sparsity algorithm:\n"
            + grid(["Statistic's name", "Value"], [[asked, number(self.target_sparsity_level)]])
            + "\n\nThresholds of the magnitude sparsity algorithm:\n"
            + grid(["Layer's name", "Sparsity threshold"], rows)
        )

    def tensorboard(self) -> dict[str, float]:
        further = {"target_sparsity_level": self.target_sparsity_level}
        return sparsity_statistics.tensorboard("magnitude_sparsity", self.model_statistics, further)
