# SPDX-License-Identifier: Apache-2.0
"""Const sparsity as an Algorithm: masks where zeros are, taken once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nncf.algorithms.const_sparsity.controller import ConstSparsityController
from nncf.algorithms.const_sparsity.options import ConstSparsityOptions
from nncf.algorithms.weight_placement import find_weights, parameter_names
from nncf.compression.algorithm import Algorithm, Compressed
from nncf.compression.layout import PRIORITY_SPARSITY, Insert, Layout
from nncf.graph.graph import Graph

_LOGGER = logging.getLogger("nncf")


@dataclass(frozen=True)
class ConstMask:
    """A mask that keeps the zeros of a weight; named as those of the algorithms that make zeros."""

    algorithm: ClassVar[str] = "const_sparsity"
    tag: ClassVar[str] = "MASK"

    def to_state(self) -> dict[str, Any]:
        return {}

    def __str__(self) -> str:
        return "constant mask"


class ConstSparsityAlgorithm(Algorithm):
    """Masks of the weights that are zero when training starts; frozen layers may have them."""

    name: ClassVar[str] = "const_sparsity"
    changes_values: ClassVar[bool] = True
    options: ConstSparsityOptions

    def plan(self, graph: Graph) -> Layout:
        weights, skipped = find_weights(graph, self.name, self.options, self.root)
        inserts = [
            Insert(
                weight.points,
                ConstMask(),
                weight.parameter.shape,
                priority=PRIORITY_SPARSITY,
                reason=weight.reason,
            )
            for weight in weights
        ]
        return Layout(inserts, skipped)

    @staticmethod
    def op_from_state(state: Mapping[str, Any]) -> ConstMask:
        return ConstMask(**state)

    def initialize(self, compressed: Compressed) -> None:
        _take(compressed)
        if not any(op.describe()["dropped"] for op in compressed.ops.values()):
            _LOGGER.warning(
                "%s: no weight of the model is zero, so there is nothing to keep. Load the sparse "
                "weights before create_compressed_model, or afterwards with nncf.load_state, which "
                "takes the masks from them.",
                self.name,
            )

    def control(self, compressed: Compressed) -> ConstSparsityController:
        _take(compressed)
        return ConstSparsityController(compressed)


def _take(compressed: Compressed) -> None:
    """Give each mask the zeros of its weight as it is now."""
    for name, parameter in parameter_names(compressed.layout, compressed.graph).items():
        compressed.ops[name].weight_loaded(compressed.parameter(parameter))
