# SPDX-License-Identifier: Apache-2.0
"""The controller of quantization, and the schedule that switches quantizers on by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nncf.algorithms.quantization.options import QuantizationOptions, StagedOptions
from nncf.algorithms.quantization.statistics import QuantizationStatistics, collect
from nncf.compression.controller import Controller
from nncf.compression.layout import Layout
from nncf.compression.schedules import Scheduler
from nncf.compression.stage import CompressionStage
from nncf.compression.statistics import Statistics
from nncf.graph.graph import Graph


class QuantizationController(Controller):
    """Holds the quantizers of a model: switches them, finds their ranges, counts them."""

    name = "quantization"

    def __init__(
        self,
        quantizers: Mapping[str, Any],
        layout: Layout,
        options: QuantizationOptions,
        graph: Graph,
        initialize_ranges: Callable[[], Iterable[str]],
    ) -> None:
        super().__init__()
        self.all_quantizations = dict(quantizers)
        self.layout = layout
        self._graph = graph
        self._initialize_ranges = initialize_ranges
        self.without_range = frozenset(
            name for name, q in quantizers.items() if not q.enabled and not q.initialized
        )
        weights = {insert.name for insert in layout if insert.op.weight}
        self.weight_quantizers = {n: q for n, q in quantizers.items() if n in weights}
        self.non_weight_quantizers = {n: q for n, q in quantizers.items() if n not in weights}
        if options.params is not None:
            self.scheduler = StagedScheduler(self, options.params)

    def enable_weight_quantization(self) -> None:
        self.switch(self.weight_quantizers, True)

    def disable_weight_quantization(self) -> None:
        self.switch(self.weight_quantizers, False)

    def enable_activation_quantization(self) -> None:
        self.switch(self.non_weight_quantizers, True)

    def disable_activation_quantization(self) -> None:
        self.switch(self.non_weight_quantizers, False)

    def switch(self, quantizers: Mapping[str, Any], enabled: bool) -> None:
        """Switch quantizers on or off; those without a range, because no data came, stay off."""
        for name, quantizer in quantizers.items():
            quantizer.enabled = enabled and name not in self.without_range

    def init_range(self) -> None:
        """Find the ranges anew from the registered data loader."""
        self.without_range = frozenset(self._initialize_ranges())

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "without_range": sorted(self.without_range)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.without_range = frozenset(state.get("without_range", ()))
        self.switch({name: self.all_quantizations[name] for name in self.without_range}, False)
        super().load_state(state)

    def compression_stage(self) -> CompressionStage:
        if isinstance(self.scheduler, StagedScheduler):
            return self.scheduler.compression_stage()
        return CompressionStage.FULLY_COMPRESSED

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:  # noqa: ARG002  # all are quick
        return Statistics(quantization=self._collect())

    def _collect(self) -> QuantizationStatistics:
        signs = {name: bool(q.is_signed) for name, q in self.all_quantizations.items()}
        enabled = {name: bool(q.enabled) for name, q in self.all_quantizations.items()}
        return collect(self.layout, self._graph, signs, enabled)


class StagedScheduler(Scheduler):
    """Keeps weights and activations in floating point until their start epochs.

    When an epoch switches quantizers on, ranges are found anew, since training has moved them.
    """

    def __init__(self, controller: QuantizationController, options: StagedOptions) -> None:
        super().__init__()
        self._controller = controller
        self.weights_start = options.weights_quant_start_epoch
        self.activations_start = options.activations_quant_start_epoch
        self._apply(max(self.current_epoch, 0))

    def epoch_step(self, next_epoch: int | None = None) -> None:
        before = self._enabled()
        super().epoch_step(next_epoch)
        self._apply(self.current_epoch)
        newly_on = any(now and not then for now, then in zip(self._enabled(), before, strict=True))
        if newly_on:
            self._controller.init_range()

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._apply(max(self.current_epoch, 0))

    def _enabled(self) -> tuple[bool, bool]:
        epoch = max(self.current_epoch, 0)
        return epoch >= self.weights_start, epoch >= self.activations_start

    def _apply(self, epoch: int) -> None:
        controller = self._controller
        controller.switch(controller.weight_quantizers, epoch >= self.weights_start)
        controller.switch(controller.non_weight_quantizers, epoch >= self.activations_start)

    def compression_stage(self) -> CompressionStage:
        return CompressionStage(sum(self._enabled()))
