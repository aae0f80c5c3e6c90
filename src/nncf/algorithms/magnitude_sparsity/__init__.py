# SPDX-License-Identifier: Apache-2.0
"""Magnitude sparsity: zero the smallest weights, a few more each epoch, and train the rest.

The idea
    Small weights matter little. A mask sets the smallest share of them to zero; training goes
    on, the remaining weights take over, and the share grows until it reaches its target.

The formula
    Importance of a weight: ``|w|``, or ``|w| / ‖W‖₂`` so that layers of different scale compare
    fairly. With all importances sorted in ascending order, the threshold at level ``p`` is the
    one at position ``⌊(N − 1) p⌋``; weights above it are kept. The level follows a schedule, by
    default the polynomial ``p_T − (p_T − p_0)(1 − t/T)^0.9``.

Paper
    M. Zhu, S. Gupta, *To prune, or not to prune*, 2017 (arXiv:1710.01878).

When to use it
    When the runtime has sparse kernels, or the model file is to be compressed. Half of the
    weights usually go without loss; it adds no trainable parameters and costs little time.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from nncf.algorithms.batchnorm_adaptation.options import BatchnormAdaptationOptions
from nncf.algorithms.sparsity_options import SPARSITY_ROLE, ScopeOptions, SparsitySchedule
from nncf.options import Level, Options, option


class MagnitudeSparsityInitializer(Options):
    """What happens when a sparsity level has been set."""

    batchnorm_adaptation: BatchnormAdaptationOptions = option(
        BatchnormAdaptationOptions(),
        "Refresh batch norm statistics when the training script asks for it.",
    )


class MagnitudeSparsitySchedule(SparsitySchedule):
    """How the level grows, and which weights go first."""

    schedule: Literal["polynomial", "exponential", "multistep"] = option(
        "polynomial", "How the level grows."
    )
    weight_importance: Literal["normed_abs", "abs"] = option(
        "normed_abs",
        'What makes a weight important: its size relative to its layer ("normed_abs") or as it '
        'is ("abs").',
    )


class MagnitudeSparsityOptions(ScopeOptions):
    """Settings of ``{"algorithm": "magnitude_sparsity"}``."""

    adaptive: ClassVar[bool] = True
    role: ClassVar[str] = SPARSITY_ROLE

    algorithm: Literal["magnitude_sparsity"] = option("magnitude_sparsity", "Names this algorithm.")
    sparsity_init: Level = option(0.0, "Level at the start of training.")
    initializer: MagnitudeSparsityInitializer = option(
        MagnitudeSparsityInitializer(), "What happens when a level has been set."
    )
    params: MagnitudeSparsitySchedule = option(
        MagnitudeSparsitySchedule(), "How the level grows over the epochs."
    )
