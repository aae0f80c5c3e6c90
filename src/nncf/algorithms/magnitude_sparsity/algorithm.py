# SPDX-License-Identifier: Apache-2.0
"""Magnitude sparsity as an Algorithm: plan the masks, set the first ones, control them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from nncf.algorithms.magnitude_sparsity.controller import MagnitudeSparsityController
from nncf.algorithms.magnitude_sparsity.levels import matched_overrides
from nncf.algorithms.magnitude_sparsity.mask import MagnitudeMask, to_insert
from nncf.algorithms.magnitude_sparsity.options import MagnitudeSparsityOptions
from nncf.algorithms.weight_placement import find_weights, refuse_frozen
from nncf.compression.algorithm import Algorithm, Compressed
from nncf.compression.layout import Insert, Layout
from nncf.graph.graph import Graph

_LOGGER = logging.getLogger("nncf")


class MagnitudeSparsityAlgorithm(Algorithm):
    """Masks that drop the smallest weights, by a schedule (Zhu and Gupta 2017)."""

    name: ClassVar[str] = "magnitude_sparsity"
    changes_values: ClassVar[bool] = True
    options: MagnitudeSparsityOptions

    def __init__(self, options: MagnitudeSparsityOptions, root: Any) -> None:
        super().__init__(options, root)
        self._controller: MagnitudeSparsityController | None = None

    def plan(self, graph: Graph) -> Layout:
        weights, skipped = find_weights(graph, self.name, self.options, self.root)
        refuse_frozen(weights, self.name)
        found = [to_insert(weight, self.options.params.pattern) for weight in weights]
        inserts = [item for item in found if isinstance(item, Insert)]
        for reasons in found:
            skipped += [] if isinstance(reasons, Insert) else reasons
        layout = Layout(inserts, skipped)
        matched_overrides(self.options, layout, graph)  # says what is wrong before anything changes
        if not inserts:
            _LOGGER.warning(
                "%s: the model has no weight that can be made sparse; see the list of skipped "
                "operations for the reasons.",
                self.name,
            )
        return layout

    @staticmethod
    def op_from_state(state: Mapping[str, Any]) -> MagnitudeMask:
        return MagnitudeMask.from_state(state)

    def initialize(self, compressed: Compressed) -> None:
        self._controller = MagnitudeSparsityController(compressed, self.options)
        self._controller.set_sparsity_level(self.options.sparsity_init)

    def control(self, compressed: Compressed) -> MagnitudeSparsityController:
        return self._controller or MagnitudeSparsityController(compressed, self.options)
