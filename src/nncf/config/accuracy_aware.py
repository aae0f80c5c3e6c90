# SPDX-License-Identifier: Apache-2.0
"""Options of ``accuracy_aware_training``: training that stops when the accuracy is good enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from nncf.option_messages import Problem
from nncf.options import (
    Count,
    Flag,
    Fraction,
    NonNegative,
    Options,
    Positive,
    PositiveNumber,
    option,
)

_DROPS = ("maximal_relative_accuracy_degradation", "maximal_absolute_accuracy_degradation")


class AccuracyDrop(Options):
    """How much accuracy may be lost: one of the two ways of saying it."""

    maximal_relative_accuracy_degradation: NonNegative | None = option(
        None, "Largest loss of accuracy in percent of the uncompressed model's."
    )
    maximal_absolute_accuracy_degradation: NonNegative | None = option(
        None, "Largest loss of accuracy in units of the metric."
    )

    higher_is_better: Flag = option(
        True, "Whether a greater metric is better (accuracy), or a lower one (loss, perplexity)."
    )
    maximal_total_minutes: PositiveNumber | None = option(
        None, "Minutes after which training ends, at the end of the epoch. Unset: no limit."
    )

    def rules(self) -> Iterator[Problem]:
        given = self.has(*_DROPS)
        if len(given) != 1:
            verb = "keep" if given else "give"
            yield Problem((), f": {verb} exactly one of {_DROPS[0]} and {_DROPS[1]}.")


class TargetOptions(Options):
    """What the deployed file must come to, measured on files written before training."""

    type: Literal["size_bytes", "latency_ms"] = option(
        ...,
        "The size of the file (or files), or the median time of one call with one sample on this "
        "machine.",
    )
    value: PositiveNumber = option(..., "How many bytes or milliseconds at most.")
    runtime: Literal["onnxruntime", "openvino"] = option(
        "onnxruntime", "Which runtime's file it is; latency is measured in it."
    )
    threads: Positive = option(1, "Threads of the runtime while latency is measured.")


class EarlyExitParams(AccuracyDrop):
    """Settings of the early exit."""

    maximal_total_epochs: Positive = option(..., "Epochs after which training ends anyway.")


class AdaptiveParams(AccuracyDrop):
    """Settings of the search for the highest compression rate."""

    initial_training_phase_epochs: Count = option(
        ..., "Epochs at the first compression rate before the search begins."
    )
    patience_epochs: Positive = option(..., "Epochs before a rate counts as not good enough.")
    initial_compression_rate_step: PositiveNumber = option(
        0.1, "By how much the compression rate changes at first."
    )
    compression_rate_step_reduction_factor: Fraction = option(
        0.5, "Factor on that step whenever the direction turns."
    )
    lr_reduction_factor: Fraction = option(
        0.5, "Factor on the learning rate whenever the direction turns."
    )
    minimal_compression_rate_step: PositiveNumber = option(
        0.025, "Step below which the search ends."
    )
    target: TargetOptions | None = option(
        None,
        "If given, the least compression rate that meets it is found by measuring, before training, "
        "and trained until the accuracy is good enough. Schedule, phases and steps have no effect.",
    )
    maximal_total_epochs: Positive = option(10000, "Epochs after which the search ends anyway.")


class EarlyExitOptions(Options):
    """Train until the accuracy is good enough."""

    mode: Literal["early_exit"] = option(..., "Which loop trains the model.")
    params: EarlyExitParams = option(..., "Settings of the loop.")


class AdaptiveOptions(Options):
    """Search for the highest compression rate whose accuracy is good enough."""

    mode: Literal["adaptive_compression_level"] = option(..., "Which loop trains the model.")
    params: AdaptiveParams = option(..., "Settings of the loop.")


AccuracyAwareSection = Annotated[EarlyExitOptions | AdaptiveOptions, Field(discriminator="mode")]
