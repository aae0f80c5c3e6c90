# SPDX-License-Identifier: Apache-2.0
"""The controller of quantization: it switches quantizers, finds their ranges, counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nncf.algorithms.batchnorm_adaptation.adaptation import adapt
from nncf.algorithms.quantization.adaptive import AdaptiveWidths
from nncf.algorithms.quantization.options import QuantizationOptions
from nncf.algorithms.quantization.statistics import QuantizationStatistics, collect
from nncf.algorithms.staged_schedule import StagedScheduler
from nncf.compression.algorithm import Compressed
from nncf.compression.controller import Controller
from nncf.compression.layout import Layout
from nncf.compression.stage import CompressionStage
from nncf.compression.statistics import Statistics


class QuantizationController(Controller):
    """Holds the quantizers of a model: switches them, finds their ranges, counts them."""

    name = "quantization"

    def __init__(
        self,
        compressed: Compressed,
        options: QuantizationOptions,
        initialize_ranges: Callable[[Compressed], Iterable[str]],
        widths: AdaptiveWidths | None = None,
    ) -> None:
        super().__init__()
        quantizers, layout = compressed.ops, compressed.layout
        self.all_quantizations = dict(quantizers)
        self._compressed = compressed
        self._widths = widths
        self._batchnorm_adaptation = options.initializer.batchnorm_adaptation
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
        self.without_range = frozenset(self._initialize_ranges(self._compressed))
        self._compressed.backend.agree(self._compressed.model)

    def adapt_batch_norms(self) -> None:
        """Measure the statistics of batch norms anew from the registered data loader.

        At the end of training with few bits: weights that go to and fro between two codes leave
        running averages that fit neither (Nagel et al. 2022, arXiv:2203.11086, section 3).

        Raises DataError when no loader is registered or its data does not fit the model; the
        statistics are then as before.
        """
        adapt(self._compressed, self._batchnorm_adaptation, explicit=True)
        self._compressed.backend.agree(self._compressed.model)

    @property
    def layout(self) -> Layout:
        """The quantizers as they are now."""
        return self._compressed.layout

    @property
    def compression_rate(self) -> float | None:
        """Share of their bits that weights save against 8 each; None without ``adaptive_bits``.

        A rate that is set gives each weight new bits: the fewer, the less the outputs of the model
        depend on it. What gets other bits gets a new range; train afterwards.
        """
        return None if self._widths is None else self._widths.plan.rate(self._widths.now())

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        if self._widths is not None:
            self._compressed, unseen = self._widths.set_rate(self._compressed, rate)
            self.without_range |= frozenset(unseen)

    @property
    def maximal_compression_rate(self) -> float:
        return 1.0 if self._widths is None else self._widths.plan.highest_rate

    def layout_state(self) -> dict[str, Any] | None:
        return None if self._widths is None else self.layout.to_state()

    def get_state(self) -> dict[str, Any]:
        state = {**super().get_state(), "without_range": sorted(self.without_range)}
        return state if self._widths is None else {**state, "bits": self._widths.now()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self._widths is not None and "bits" in state:
            self._compressed = self._widths.restore(self._compressed, state["bits"])
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
        return collect(self.layout, self._compressed.graph, signs, enabled)
