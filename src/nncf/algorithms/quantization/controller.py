# SPDX-License-Identifier: Apache-2.0
"""The controller of quantization: it switches quantizers, finds their ranges, counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nncf.algorithms.quantization.options import QuantizationOptions
from nncf.algorithms.quantization.statistics import QuantizationStatistics, collect
from nncf.algorithms.staged_schedule import StagedScheduler
from nncf.compression.controller import Controller
from nncf.compression.layout import Layout
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
        self.switch_weights(True)

    def disable_weight_quantization(self) -> None:
        self.switch_weights(False)

    def enable_activation_quantization(self) -> None:
        self.switch_activations(True)

    def disable_activation_quantization(self) -> None:
        self.switch_activations(False)

    def switch_weights(self, enabled: bool) -> None:
        self.switch(self.weight_quantizers, enabled)

    def switch_activations(self, enabled: bool) -> None:
        self.switch(self.non_weight_quantizers, enabled)

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
