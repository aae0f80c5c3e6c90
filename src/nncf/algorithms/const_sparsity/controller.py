# SPDX-License-Identifier: Apache-2.0
"""The controller of const sparsity, which has nothing to control, and its statistics."""

from __future__ import annotations

from dataclasses import dataclass

from nncf.algorithms import sparsity_statistics
from nncf.algorithms.sparsity_controller import model_statistics
from nncf.algorithms.sparsity_statistics import SparsifiedModelStatistics
from nncf.algorithms.weight_placement import parameter_names
from nncf.compression.algorithm import Compressed
from nncf.compression.controller import Controller
from nncf.compression.stage import CompressionStage
from nncf.compression.statistics import Statistics


@dataclass(frozen=True)
class ConstSparsityStatistics:
    """What is zero in the model."""

    model_statistics: SparsifiedModelStatistics

    def to_str(self) -> str:
        return self.model_statistics.to_str()

    def tensorboard(self) -> dict[str, float]:
        return sparsity_statistics.tensorboard("const_sparsity", self.model_statistics)


class ConstSparsityController(Controller):
    """Counts the zeros; the masks change only when other weights are loaded."""

    name = "const_sparsity"

    def __init__(self, compressed: Compressed) -> None:
        super().__init__()
        self._compressed = compressed
        self._parameters = parameter_names(compressed.layout, compressed.graph)
        self.masks = dict(compressed.ops)

    def compression_stage(self) -> CompressionStage:
        return CompressionStage.FULLY_COMPRESSED

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:  # noqa: ARG002  # all are quick
        found = model_statistics(self._compressed, self._parameters)
        return Statistics(**{self.name: ConstSparsityStatistics(found)})
