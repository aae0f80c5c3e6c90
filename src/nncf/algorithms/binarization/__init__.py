# SPDX-License-Identifier: Apache-2.0
"""Binarization: weights and activations of convolutions become one bit each.

The idea
    With two values per weight and two per activation, a convolution is a count of equal bits.
    The accuracy lost is won back, in part, by long training in stages.

The formula
    Weights: ``sign(w) · mean|w|``, the mean per output channel (XNOR) or over the whole tensor
    (DoReFa). Activations: ``s · [x > t · s]`` with a trained scale ``s`` and a trained threshold
    ``t`` per channel. Backward, the steps count as the identity within the range.

Papers
    M. Rastegari et al., *XNOR-Net*, 2016 (arXiv:1603.05279). S. Zhou et al., *DoReFa-Net*,
    2016 (arXiv:1606.06160).

When to use it
    On targets with binary convolutions, when several points of accuracy may be spent. Leave the
    first and the last layer out (``ignored_scopes``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from nncf.algorithms.initializer_options import InitializerOptions
from nncf.algorithms.sparsity_options import TORCH, ScopeOptions
from nncf.algorithms.staged_options import StagedSection
from nncf.option_messages import Problem
from nncf.options import NonNegative, option


class BinarizationOptions(ScopeOptions):
    """Settings of ``{"algorithm": "binarization"}``."""

    algorithm: Literal["binarization"] = option(
        "binarization", "Names this algorithm.", backends=TORCH
    )
    mode: Literal["xnor", "dorefa"] = option(
        "xnor",
        'Scale of the weights: per output channel ("xnor") or per tensor ("dorefa").',
        backends=TORCH,
    )
    initializer: InitializerOptions = option(
        InitializerOptions(), "What happens before training.", backends=TORCH
    )
    params: StagedSection = option(
        None, "The staged schedule; if given, layers are binarized by epoch.", backends=TORCH
    )
    compression_lr_multiplier: NonNegative | None = option(
        None,
        "Factor on the gradients of scales and thresholds; wins over the key of the same name at "
        "the top level.",
        backends=TORCH,
    )

    def rules(self) -> Iterator[Problem]:
        if isinstance(self.initializer.range, tuple):
            yield Problem(
                ("initializer", "range"),
                ": expected one object, found a list. All binarized layers find their scale alike.",
            )

    def remarks(self) -> Iterator[Problem]:
        if self.initializer.precision is not None:
            yield Problem(
                ("initializer", "precision"),
                " has no effect: what is binarized has one bit. Remove the section.",
            )
