# SPDX-License-Identifier: Apache-2.0
"""RB sparsity as an Algorithm: plan the masks and control them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from nncf.algorithms.rb_sparsity import RBSparsityOptions
from nncf.algorithms.rb_sparsity.controller import RBSparsityController
from nncf.algorithms.rb_sparsity.mask import LearnedMask
from nncf.algorithms.weight_placement import find_weights, refuse_frozen
from nncf.compression.algorithm import Algorithm, Compressed
from nncf.compression.layout import PRIORITY_SPARSITY, Insert, Layout
from nncf.graph.graph import Graph

_LOGGER = logging.getLogger("nncf")


class RBSparsityAlgorithm(Algorithm):
    """Masks that training itself learns, pulled to a level by a loss (after Louizos 2018)."""

    name: ClassVar[str] = "rb_sparsity"
    changes_values: ClassVar[bool] = True
    options: RBSparsityOptions

    def plan(self, graph: Graph) -> Layout:
        weights, skipped = find_weights(graph, self.name, self.options, self.root)
        refuse_frozen(weights, self.name)
        multiplier = self.options.compression_lr_multiplier
        if multiplier is None:
            multiplier = self.root.compression_lr_multiplier
        inserts = [
            Insert(
                weight.points,
                LearnedMask(multiplier),
                weight.parameter.shape,
                priority=PRIORITY_SPARSITY,
                reason=weight.reason,
            )
            for weight in weights
        ]
        if not inserts:
            _LOGGER.warning(
                "%s: the model has no weight that can be made sparse; see the list of skipped "
                "operations for the reasons.",
                self.name,
            )
        return Layout(inserts, skipped)

    @staticmethod
    def op_from_state(state: Mapping[str, Any]) -> LearnedMask:
        return LearnedMask.from_state(state)

    def control(self, compressed: Compressed) -> RBSparsityController:
        return RBSparsityController(compressed, self.options)
