# SPDX-License-Identifier: Apache-2.0
"""Options of what happens before training, which quantization and binarization share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from nncf.algorithms.batchnorm_adaptation.options import BatchnormAdaptationOptions
from nncf.option_messages import Part, Problem
from nncf.options import (
    NUMERIC,
    Bits,
    Count,
    Flag,
    Fraction,
    Options,
    Positive,
    PositiveNumber,
    Scope,
    Scopes,
    Text,
    option,
)

TORCH = ("torch",)
Widths = Annotated[tuple[Bits, ...], Field(min_length=1)]
Percent = Annotated[float, Field(ge=0, le=100), NUMERIC]
RangeType = Literal[
    "mixed_min_max",
    "min_max",
    "mean_min_max",
    "threesigma",
    "percentile",
    "mean_percentile",
    "least_error",
]


class PercentileOptions(Options):
    """Which percentiles of the values become the ends of the range."""

    min_percentile: Percent = option(0.1, "Percentile of the lower end.")
    max_percentile: Percent = option(99.9, "Percentile of the upper end.")

    def rules(self) -> Iterator[Problem]:
        if self.min_percentile >= self.max_percentile:
            yield Problem(
                ("min_percentile",),
                f" = {self.min_percentile:g}: expected less than max_percentile, "
                f"which is {self.max_percentile:g}.",
            )


class RangeOptions(Options):
    """How the range of a quantizer is found from data."""

    num_init_samples: Count = option(
        256, "Samples over which statistics are collected; 0 switches the initialisation off."
    )
    type: RangeType | None = option(
        None,
        "Which statistic: extremes (over all samples, averaged over samples or batches, or a mix "
        "that suits each tensor), median ± 3 robust standard deviations, percentiles, or the range "
        'with the least squared rounding error. Unset: "least_error" for fewer than 8 bits, '
        '"mixed_min_max" for 8.',
    )
    params: PercentileOptions = option(PercentileOptions(), "Settings of the percentile types.")

    def remarks(self) -> Iterator[Problem]:
        if "percentile" not in (self.type or ""):
            yield from self.no_effect(("params",), 'type "percentile" or "mean_percentile"')


class ScopedRangeOptions(RangeOptions):
    """How ranges are found for some quantizers: one entry of a list."""

    target_scopes: Scopes | None = option(None, "Operations that this entry is for.")
    ignored_scopes: Scopes | None = option(None, "Operations that this entry is not for.")
    target_quantizer_group: Literal["weights", "activations"] | None = option(
        None, "Quantizers that this entry is for; unset: both groups."
    )

    def rules(self) -> Iterator[Problem]:
        if self.target_scopes is None and self.ignored_scopes is None:
            yield Problem(
                (),
                ": an entry of a list needs target_scopes or ignored_scopes, which say for which "
                'operations it is. Write "ignored_scopes": [] for all.',
            )


def _form(value: Any) -> str | None:
    if isinstance(value, RangeOptions | Mapping):
        return "object"
    return "array" if isinstance(value, list | tuple) else None


def _path_or_pairs(value: Any) -> str:
    return "path" if isinstance(value, str) else "pairs"


RangeSection = Annotated[
    Annotated[RangeOptions, Tag("object")]
    | Annotated[tuple[ScopedRangeOptions, ...], Tag("array")],
    Discriminator(_form),
]
"""One object for all quantizers, or a list of which exactly one entry fits each quantizer."""


class OverrideInitializer(Options):
    """``initializer`` of one entry of ``scope_overrides``."""

    range: RangeOptions | None = option(None, "How the range is found.")


class BudgetOptions(Options):
    """What the quantized weights may cost in all, in place of a compression ratio."""

    type: Literal["bytes", "bit_operations", "latency"] = option(
        ...,
        "Of what: bytes of quantized weights, multiply-accumulates times bits of weight times bits "
        "of activation for one sample, or milliseconds from `table`.",
        backends=TORCH,
    )
    value: PositiveNumber = option(..., "How much of it at most.", backends=TORCH)
    table: Text | None = option(
        None,
        'Path of a JSON file with measured latencies: layer → bits → milliseconds. Bits are "4", or '
        '"4/8" for weights of 4 and activations of 8.',
        backends=TORCH,
    )

    def rules(self) -> Iterator[Problem]:
        if self.type == "latency" and self.table is None:
            yield Problem(
                ("table",),
                ": a latency budget needs measured latencies. Expected the path of a JSON file "
                '{"layer": {"4": 0.8, "8": 1.1}} measured on the device that is meant: the runtimes '
                "on this machine have no kernels for fewer than 8 bits, so nothing could be "
                "measured here.",
            )
        if self.type != "latency" and self.table is not None:
            yield Problem(("table",), ': is read only with "type": "latency". Remove it.')


class HawqOptions(Options):
    """Bit widths by sensitivity: layers with a small Hessian trace get few bits."""

    type: Literal["hawq"] = option(..., "How bit widths are chosen.", backends=TORCH)
    bits: Widths = option(
        (2, 4, 8), "Bit widths to choose from, of those that the device has.", backends=TORCH
    )
    num_data_points: Positive = option(
        100, "Samples for the estimate of the Hessian trace.", backends=TORCH
    )
    iter_number: Positive = option(
        200, "Largest number of random vectors for the estimate.", backends=TORCH
    )
    tolerance: PositiveNumber = option(
        1e-4, "Relative change of the estimate at which it stops.", backends=TORCH
    )
    compression_ratio: PositiveNumber = option(
        1.5,
        "Least ratio of the bit complexity of the INT8 model to that of the mixed one; an operation "
        "counts with the wider of its weight and its activation.",
        backends=TORCH,
    )
    budget: BudgetOptions | None = option(
        None, "A limit in place of the compression ratio.", backends=TORCH
    )
    traces_per_layer_path: Text | None = option(
        None,
        "File with average traces computed earlier, one for each quantized weight: JSON, as "
        "`dump_init_precision_data` writes it, or a tensor saved by PyTorch.",
        backends=TORCH,
    )
    bitwidth_assignment_mode: Literal["strict", "liberal"] = option(
        "liberal",
        '"strict": weights and activations that meet share one bit width. "liberal": activations '
        "take the least width of the weights they meet.",
        backends=TORCH,
    )
    dump_init_precision_data: Flag = option(
        False, "Write plots and tables of the choice to the log directory.", backends=TORCH
    )

    def rules(self) -> Iterator[Problem]:
        if self.budget is not None and self.has("compression_ratio"):
            yield Problem(
                ("budget",),
                ": a budget and a compression_ratio are two limits in one's place. Expected one of "
                "them: remove the other.",
            )


class AutoqOptions(Options):
    """Bit widths by reinforcement learning: an agent tries policies and is told the accuracy."""

    type: Literal["autoq"] = option(..., "How bit widths are chosen.", backends=TORCH)
    bits: Widths = option(
        (2, 4, 8), "Bit widths to choose from, of those that the device has.", backends=TORCH
    )
    iter_number: Count = option(0, "Number of episodes.", backends=TORCH)
    compression_ratio: Fraction = option(
        0.15, "Wanted size of the model as a share of its FP32 size.", backends=TORCH
    )
    eval_subset_ratio: Fraction = option(
        1.0, "Share of the evaluation data that each episode uses.", backends=TORCH
    )
    warmup_iter_number: Count = option(
        20, "Episodes with random policies at the start.", backends=TORCH
    )
    dump_init_precision_data: Flag = option(
        False, "Write plots and tables of the choice to the log directory.", backends=TORCH
    )


BitwidthPerScope = Annotated[
    Annotated[tuple[tuple[Bits, Scope], ...], Tag("pairs")] | Annotated[Text, Tag("path")],
    Discriminator(_path_or_pairs),
]
"""Pairs of bits and a scope, or the path of a file that holds them."""


class ManualOptions(Options):
    """Bit widths given by the user."""

    type: Literal["manual"] = option(..., "How bit widths are chosen.", backends=TORCH)
    bitwidth_per_scope: BitwidthPerScope = option(
        (),
        'Pairs `[bits, "scope"]` or `[bits, "scope|WEIGHT"]`, or the path of a JSON file with '
        "them. The endings `|WEIGHT`, `|OUTPUT` and `|INPUT0` mean one quantizer of an operation.",
        backends=TORCH,
    )
    dump_init_precision_data: Flag = option(
        False, "Write plots and tables of the choice to the log directory.", backends=TORCH
    )


PrecisionOptions = Annotated[
    HawqOptions | AutoqOptions | ManualOptions, Field(discriminator="type")
]


class InitializerOptions(Options):
    """What is done before training begins: ranges, batch norm, bit widths."""

    @classmethod
    def modernize(cls, section: dict[str, Any], path: tuple[Part, ...]) -> Iterator[Problem]:
        """Close what earlier releases left open or had in common."""
        yield from super().modernize(section, path)
        yield from _modernize_ranges(section.get("range"), (*path, "range"))
        if section.get("precision") == {}:
            del section["precision"]
        elif isinstance(section.get("precision"), dict):
            yield from _modernize_precision(section["precision"], (*path, "precision"))

    batchnorm_adaptation: BatchnormAdaptationOptions = option(
        BatchnormAdaptationOptions(),
        "Refresh batch norm statistics. Unset: done if training data is registered.",
    )
    range: RangeSection | None = option(
        None,
        "How ranges are found: one object, or a list of objects with scopes. Unset: the "
        "defaults, whenever training data is registered.",
    )
    precision: PrecisionOptions | None = option(
        None, "How each quantizer gets its own bit width. Unset: all get the same.", backends=TORCH
    )

    def ranges(self) -> tuple[RangeOptions, ...]:
        """Return the entries of ``range`` (defaults when unset), whichever form was written."""
        if self.range is None:
            return (RangeOptions(),)
        return self.range if isinstance(self.range, tuple) else (self.range,)


_PRECISION: dict[str, type[Options]] = {
    "hawq": HawqOptions,
    "autoq": AutoqOptions,
    "manual": ManualOptions,
}


def _modernize_ranges(ranges: Any, path: tuple[Part, ...]) -> Iterator[Problem]:
    """Drop keys that do nothing in the two sections that earlier releases left open."""
    if isinstance(ranges, list):
        for index, entry in enumerate(ranges):
            if isinstance(entry, dict):
                yield from ScopedRangeOptions.drop_unknown(entry, (*path, index))
                yield from _modernize_ranges(entry, (*path, index))
    elif isinstance(ranges, dict) and isinstance(ranges.get("params"), dict):
        yield from PercentileOptions.drop_unknown(ranges["params"], (*path, "params"))


def _modernize_precision(section: dict[str, Any], path: tuple[Part, ...]) -> Iterator[Problem]:
    """Fill in the type, and drop keys that only other types read."""
    kind = section.setdefault("type", "manual")
    if not isinstance(kind, str) or kind not in _PRECISION:
        return
    known = {key for options in _PRECISION.values() for key in options.model_fields}
    for key in [key for key in section if key in known]:
        if key not in _PRECISION[kind].model_fields:
            del section[key]
            yield Problem((*path, key), f' has no effect with type "{kind}".')
