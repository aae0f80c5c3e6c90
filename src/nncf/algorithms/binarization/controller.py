# SPDX-License-Identifier: Apache-2.0
"""The controller of binarization: it switches binarizers by stage and counts them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from nncf.algorithms.binarization import BinarizationOptions
from nncf.algorithms.binarization.statistics import BinarizationStatistics, collect
from nncf.algorithms.staged_schedule import StagedScheduler
from nncf.compression.algorithm import Compressed
from nncf.compression.controller import Controller
from nncf.compression.stage import CompressionStage
from nncf.compression.statistics import Statistics

_LOGGER = logging.getLogger("nncf")


class BinarizationController(Controller):
    """Holds the binarizers of a model, by Insert name: of weights and of activations."""

    name = "binarization"

    def __init__(
        self,
        compressed: Compressed,
        options: BinarizationOptions,
        initialize_scales: Callable[[], None],
    ) -> None:
        super().__init__()
        self._layout, self._graph = compressed.layout, compressed.graph
        self._initialize_scales = initialize_scales
        weights = {insert.name for insert in compressed.layout if insert.op.weight}
        self.weight_binarizers = {n: op for n, op in compressed.ops.items() if n in weights}
        self.activation_binarizers = {n: op for n, op in compressed.ops.items() if n not in weights}
        if options.params is not None:
            self.scheduler = StagedScheduler(self, options.params)
        _LOGGER.info("%s", self._collect().layers_table())

    def switch_weights(self, enabled: bool) -> None:
        """Binarize weights from now on, or leave them in floating point."""
        _switch(self.weight_binarizers, enabled)

    def switch_activations(self, enabled: bool) -> None:
        """Binarize activations from now on, or leave them in floating point."""
        _switch(self.activation_binarizers, enabled)

    def init_range(self) -> None:
        """Take the scales of activations from the registered data, or from the next step."""
        self._initialize_scales()

    def compression_stage(self) -> CompressionStage:
        if isinstance(self.scheduler, StagedScheduler):
            return self.scheduler.compression_stage()
        return CompressionStage.FULLY_COMPRESSED

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:  # noqa: ARG002  # all are quick
        return Statistics(binarization=self._collect())

    def _collect(self) -> BinarizationStatistics:
        ops = {**self.weight_binarizers, **self.activation_binarizers}
        return collect(self._layout, self._graph, {n: bool(op.enabled) for n, op in ops.items()})


def _switch(binarizers: Mapping[str, Any], enabled: bool) -> None:
    for binarizer in binarizers.values():
        binarizer.enabled = enabled
