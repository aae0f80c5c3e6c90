# SPDX-License-Identifier: Apache-2.0
"""Counts of quantizers by kind and by bit width, and what was left in floating point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from nncf.algorithms.quantization.weights import potential_weights
from nncf.compression.layout import Insert, Layout, Skip
from nncf.compression.statistics import grid
from nncf.graph.graph import Graph

_ROWS = ("Symmetric", "Asymmetric", "Signed", "Unsigned", "Per-tensor", "Per-channel")


@dataclass(frozen=True)
class QuantizerCounter:
    """Numbers of quantizers with each property, of all placed, and of all that could be."""

    num_symmetric: int = 0
    num_asymmetric: int = 0
    num_signed: int = 0
    num_unsigned: int = 0
    num_per_tensor: int = 0
    num_per_channel: int = 0
    total_count: int = 0
    potential_count: int | None = None


@dataclass(frozen=True)
class QuantizationStatistics:
    """Statistics of quantization; ``to_str()`` prints them as tables.

    ``num_wq_per_bitwidth`` and ``num_aq_per_bitwidth`` map bits to numbers of weight and
    activation quantizers; ``ratio_of_enabled_quantizations`` is in percent; ``unreached`` lists
    operations left in floating point with the reason.
    """

    wq_counter: QuantizerCounter
    aq_counter: QuantizerCounter
    num_wq_per_bitwidth: dict[int, int]
    num_aq_per_bitwidth: dict[int, int]
    ratio_of_enabled_quantizations: float
    unreached: tuple[Skip, ...] = field(default=())

    def to_str(self) -> str:
        parts = [
            "Statistics of the quantization algorithm:\n"
            + grid(
                ["Statistic's name", "Value"],
                [["Ratio of enabled quantizations", f"{self.ratio_of_enabled_quantizations:.1f}"]],
            ),
            "Statistics of the quantization share:\n" + self._share_table(),
            "Statistics of the bitwidth distribution:\n" + self._bits_table(),
        ]
        if self.unreached:
            rows = [[skip.address, skip.reason] for skip in self.unreached]
            parts.append("Left in floating point:\n" + grid(["Operation", "Why"], rows))
        return "\n\n".join(parts)

    def _share_table(self) -> str:
        rows = []
        for label, counter in (("WQs", self.wq_counter), ("AQs", self.aq_counter)):
            numbers = (
                *(counter.num_symmetric, counter.num_asymmetric),
                *(counter.num_signed, counter.num_unsigned),
                *(counter.num_per_tensor, counter.num_per_channel),
            )
            for row, number in zip(_ROWS, numbers, strict=True):
                rows.append(
                    [f"{row} {label} / All placed {label}", share(number, counter.total_count)]
                )
            if counter.potential_count is not None:
                placed = share(counter.total_count, counter.potential_count)
                rows.append([f"Placed {label} / Potential {label}", placed])
        return grid(["Statistic's name", "Value"], rows)

    def _bits_table(self) -> str:
        weights, activations = self.num_wq_per_bitwidth, self.num_aq_per_bitwidth
        total = self.wq_counter.total_count + self.aq_counter.total_count
        rows = []
        for bits in sorted({*weights, *activations}, reverse=True):
            w, a = weights.get(bits, 0), activations.get(bits, 0)
            rows.append(
                [
                    bits,
                    share(w, self.wq_counter.total_count),
                    share(a, self.aq_counter.total_count),
                    share(w + a, total),
                ]
            )
        header = ["Num bits (N)", "N-bits WQs / Placed WQs", "N-bits AQs / Placed AQs",
                  "N-bits Qs / Placed Qs"]  # fmt: skip
        return grid(header, rows)


def share(part: int, whole: int) -> str:
    """Return ``"66.67 % (2 / 3)"``; an empty whole counts as 0 %."""
    return f"{100 * part / whole if whole else 0:.2f} % ({part} / {whole})"


def collect(
    layout: Layout, graph: Graph, signs: Mapping[str, bool], enabled: Mapping[str, bool]
) -> QuantizationStatistics:
    """Count the quantizers of a layout.

    ``signs`` and ``enabled`` say per Insert name whether the running quantizer covers negative
    values and whether it is switched on.
    """
    weights = [insert for insert in layout if insert.op.weight]
    activations = [insert for insert in layout if not insert.op.weight]
    potential = potential_weights(graph)
    on = sum(enabled.values())
    return QuantizationStatistics(
        wq_counter=_count(weights, signs, potential),
        aq_counter=_count(activations, signs, None),
        num_wq_per_bitwidth=dict(Counter(insert.op.bits for insert in weights)),
        num_aq_per_bitwidth=dict(Counter(insert.op.bits for insert in activations)),
        ratio_of_enabled_quantizations=100 * on / len(enabled) if enabled else 0.0,
        unreached=tuple(skip for skip in layout.skipped if skip.in_float),
    )


def _count(
    inserts: list[Insert], signs: Mapping[str, bool], potential: int | None
) -> QuantizerCounter:
    symmetric = sum(insert.op.mode == "symmetric" for insert in inserts)
    signed = sum(signs[insert.name] for insert in inserts)
    per_channel = sum(insert.op.per_channel for insert in inserts)
    total = len(inserts)
    return QuantizerCounter(
        *(symmetric, total - symmetric, signed, total - signed),
        *(total - per_channel, per_channel, total, potential),
    )
