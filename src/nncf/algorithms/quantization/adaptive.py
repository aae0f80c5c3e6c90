# SPDX-License-Identifier: Apache-2.0
"""Bit widths as a level: a compression rate is set, and each weight gets bits by its sensitivity.

The rate is the share of their bits that quantized weights save against 8 bits each:
``1 − Σ n·b / (8·Σ n)`` over weights of n values and b bits. So 0 is plain 8-bit quantization, 0.5 as
large as 4 bits for all, 0.75 as 2 bits. What a width costs a weight is measured: by how much the
outputs of the model change when this weight alone gets it, ``Σ |Δy|² / Σ |y|²``. The integer
programme of mixed precision finds the widths with the least sum that reach the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from nncf.algorithms.mixed_precision.budget import Budget
from nncf.algorithms.mixed_precision.programme import solve
from nncf.algorithms.mixed_precision.space import Quantizer, Space, Widths
from nncf.algorithms.quantization.options import QuantizationOptions
from nncf.algorithms.quantization.placement import Placement
from nncf.algorithms.quantization.precision import quantizers_of, with_widths
from nncf.algorithms.quantization.search import products_of
from nncf.compression.algorithm import Compressed
from nncf.compression.layout import Layout
from nncf.config.structures import QuantizationRangeInitArgs
from nncf.errors import CheckpointError, ConfigError, DataError, LevelError
from nncf.graph.graph import Graph

FULL_BITS = 8
"""What the rate counts against."""

SAMPLES = 128
"""On so many samples the outputs of the model are compared."""

Variants = Mapping[str, Mapping[int, Any]]
"""By weight quantizer and bits, what the backend remembers of it with these bits."""


class WidthPlan:
    """Which widths there are to choose from, what rate they come to, and the choice.

    ``names`` are the quantizers that run; ``pace`` completes a layout by how its ranges learn.
    Raises ConfigError when no weight has a choice.
    """

    def __init__(
        self,
        placement: Placement,
        options: QuantizationOptions,
        graph: Graph,
        *,
        names: Collection[str],
        device: str,
        pace: Callable[[Layout], Layout],
    ) -> None:
        self._placement = placement
        self._pace = pace
        bits = options.weights.adaptive_bits or ()
        every = _quantizers(placement, bits, options.activations.adaptive_bits or ())
        quantizers = {name: quantizer for name, quantizer in every.items() if name in names}
        self.space = Space(quantizers, tuple(products_of(placement, quantizers, graph)))
        weights = self.space.weights.values()
        self.values = sum(quantizer.values for quantizer in weights)
        if all(len(quantizer.widths) == 1 for quantizer in weights):
            has = sorted({width for quantizer in weights for width in quantizer.widths})
            raise ConfigError(
                f"weights.adaptive_bits = {sorted(set(bits))} leaves nothing to choose: on "
                f"target_device {device}, and with the bits that other options settle, all "
                f"{len(weights)} weights have {has} bits. Expected a weight with a choice: set "
                '"target_device": "TRIAL" (or "VPU"), give more bits, or remove the key.'
            )

    def widest(self) -> dict[str, int]:
        return {name: max(q.widths) for name, q in self.space.quantizers.items()}

    @property
    def highest_rate(self) -> float:
        """The rate at which all weights have the least of their bits."""
        return self.rate({name: min(q.widths) for name, q in self.space.weights.items()})

    def rate(self, widths: Widths) -> float:
        """Return the share of their bits that weights save against 8 each."""
        bits = sum(q.values * widths[name] for name, q in self.space.weights.items())
        return 1 - bits / (FULL_BITS * self.values)

    def choose(self, rate: float, costs: Callable[[], Mapping[str, Mapping[int, float]]]) -> Widths:
        """Return widths of at least a rate; ``costs()`` is asked only where there is a choice.

        Raises LevelError for a rate out of reach.
        """
        highest = self.highest_rate
        if not rate <= highest + 1e-9:
            raise LevelError(
                f"compression_rate = {rate:g} is out of reach: with the least of their "
                f"adaptive_bits weights save {highest:.6g} of 8 bits each. Set a lower rate, or give "
                "fewer bits to choose from; the first and last layers keep first_and_last_bits."
            )
        if rate <= self.rate(self.widest()):
            return self.widest()
        alike = {name: dict.fromkeys(q.widths, 0.0) for name, q in self.space.weights.items()}
        bits = round((1 - rate) * FULL_BITS * self.values, 3)
        found = alike if rate >= highest - 1e-9 else costs()
        return solve(self.space, found, Budget("bytes", bits))

    def layout(self, widths: Widths, like: Layout) -> Layout:
        """Return the layout ``like`` with these widths; what it lacks is left out."""
        named = {name: widths[name] for name in widths if name in self._placement.choices}
        planned = self._pace(
            with_widths(self._placement, self._placement.layout, named, "compression_rate")
        )
        found = {insert.name: insert for insert in planned if insert.name in named}
        return Layout([found.get(insert.name, insert) for insert in like], like.skipped)


def _quantizers(
    placement: Placement, weight_bits: Collection[int], activation_bits: Collection[int]
) -> dict[str, Quantizer]:
    """Return the quantizers with the widths they may have, all on one grid, the widest first."""
    weights = {point: site for site in placement.weights for point in site.points}
    found = {}
    for name, quantizer in quantizers_of(placement).items():
        choices = placement.choices[name]
        first = next(iter(choices.values()))
        bits = weight_bits if quantizer.weight else activation_bits
        widths = tuple(
            b
            for b in sorted(set(bits), reverse=True)
            if b in choices and choices[b].mode == first.mode
        )
        mixed = not quantizer.weight and any(point in weights for point in quantizer.points)
        frozen = quantizer.weight and not weights[quantizer.points[0]].parameter.trainable
        if mixed or frozen or not widths:  # ranges that weights and activations share stay as usual
            widths = (first.bits,)
        found[name] = replace(quantizer, widths=widths)
    return found


class AdaptiveWidths:
    """The widths of running quantizers: sets them, measures what they cost, restores them.

    ``initialize(compressed, names)`` sets the ranges of some quantizers from the model and its
    data and returns those that no value reached.
    """

    def __init__(
        self,
        plan: WidthPlan,
        compressed: Compressed,
        initialize: Callable[[Compressed, Collection[str]], Collection[str]],
    ) -> None:
        self.plan = plan
        self._initialize = initialize
        self._ops = {n: op for n, op in compressed.ops.items() if n in plan.space.quantizers}

    def now(self) -> dict[str, int]:
        return {name: op.scheme.bits for name, op in self._ops.items()}

    def restore(self, compressed: Compressed, widths: Widths) -> Compressed:
        """Give quantizers widths whose ranges come from elsewhere; return what is now so."""
        if set(widths) != set(self._ops):
            raise CheckpointError(
                "The bit widths in compression_state are of other quantizers: expected the "
                "configuration that the checkpoint was trained with."
            )
        return self._described(compressed, widths)

    def set_rate(self, compressed: Compressed, rate: float) -> tuple[Compressed, Collection[str]]:
        """Give all quantizers widths that come to a rate; return what is so now, and what got no range.

        Raises LevelError for a rate out of reach, DataError without data; all is then as it was.
        """
        backend = compressed.backend
        before = {name: backend.remember(op) for name, op in self._ops.items()}
        try:
            variants = self._variants(compressed)
            costs = partial(self._costs, compressed, variants)
            widths = backend.from_main(self.plan.choose(rate, costs))
            return self._give(compressed, widths, variants)
        except BaseException:
            for name, memory in before.items():
                backend.recall(self._ops[name], memory)
            self._described(compressed, self.now())
            raise

    # --- what a width costs ----------------------------------------------------------------------

    def _variants(self, compressed: Compressed) -> Variants:
        """Return each weight quantizer with each of its widths: its own range, else a new one."""
        backend, now = compressed.backend, self.now()
        quantizers = {n: q for n, q in self.plan.space.weights.items() if len(q.widths) > 1}
        found: dict[str, dict[int, Any]] = {
            name: {now[name]: backend.remember(self._ops[name])} for name in quantizers
        }
        for bits in sorted({b for q in quantizers.values() for b in q.widths}):
            names = [n for n, q in quantizers.items() if bits in q.widths and bits != now[n]]
            trial = self._described(compressed, {**now, **dict.fromkeys(names, bits)})
            self._initialize(trial, names)
            for name in names:
                found[name][bits] = backend.remember(self._ops[name])
                backend.recall(self._ops[name], found[name][now[name]])
        self._described(compressed, now)
        return found

    def _costs(self, compressed: Compressed, variants: Variants) -> dict[str, dict[int, float]]:
        """Return what changes at the outputs when one weight alone has less than its most bits."""
        if not compressed.config.has_extra_struct(QuantizationRangeInitArgs):
            raise DataError(
                "compression_rate: which weights need their bits most is measured on data, but no data "
                "loader is registered. Call nncf.register_default_init_args(nncf_config, "
                "train_loader) before create_compressed_model."
            )
        registered = compressed.config.get_extra_struct(QuantizationRangeInitArgs)
        backend, most = compressed.backend, self.plan.widest()
        changes = {
            (name, bits): partial(self._changed, backend, name, memory, row[most[name]])
            for name, row in variants.items()
            for bits, memory in row.items()
            if bits != most[name]
        }
        for name, row in variants.items():
            backend.recall(self._ops[name], row[most[name]])
        measured = backend.output_changes(
            *(compressed.model, changes, registered.data_loader),
            samples=SAMPLES,
            device=registered.device,
        )
        return {
            name: {b: measured.get((name, b), 0.0) for b in quantizer.widths}
            for name, quantizer in self.plan.space.weights.items()
        }

    @contextmanager
    def _changed(self, backend: Any, name: str, trial: Any, usual: Any) -> Iterator[None]:
        backend.recall(self._ops[name], trial)
        try:
            yield
        finally:
            backend.recall(self._ops[name], usual)

    # --- change ----------------------------------------------------------------------------------

    def _give(
        self, compressed: Compressed, widths: Widths, variants: Variants
    ) -> tuple[Compressed, Collection[str]]:
        """Let weights have widths with the ranges found for them, and activations new ranges."""
        changed = [n for n, bits in self.now().items() if bits != widths[n] and n not in variants]
        for name, row in variants.items():
            compressed.backend.recall(self._ops[name], row[widths[name]])
        after = self._described(compressed, widths)
        unseen = self._initialize(after, changed) if changed else ()
        compressed.backend.agree(compressed.model)
        return after, unseen

    def _described(self, compressed: Compressed, widths: Widths) -> Compressed:
        """Give the quantizers the schemes of these widths, and return what is so now."""
        layout = self.plan.layout(widths, compressed.layout)
        for insert in layout:
            if insert.name in self._ops:
                self._ops[insert.name].scheme = insert.op
        compressed.backend.describe_anew(compressed.model, layout)
        return replace(compressed, layout=layout)
