# SPDX-License-Identifier: Apache-2.0
"""Quantization: train with the rounding that deployment will do.

The idea
    A deployed INT8 model stores weights as small integers and computes with integers. Rounding
    costs accuracy, but a network that meets the rounding while it trains learns to live with
    it. So every quantized tensor passes through a *fake quantizer*: it rounds to the grid of
    the deployed model and stays a floating-point number, and its range is trained too.

The formula
    A quantizer of b bits has integer levels ``l_low … l_high`` and a step ``s``::

        y = s · (clamp(round(x / s) + z, l_low, l_high) − z)

    Symmetric quantizers learn one scale per tensor or channel (``s = scale / l_high``, z = 0);
    asymmetric ones learn both ends of the range, moved so that zero is exactly on the grid,
    since padding and ReLU produce zeros in masses. In the backward pass the rounding counts as
    the identity (straight-through estimator): values inside the range pass their gradient on,
    values outside give theirs to the end of the range that cut them off.

Where quantizers go
    Before everything that a device computes in integers (``hardware/*.json``), moved up the
    graph as far as values do not change, so that branches share one quantizer.

Papers
    B. Jacob et al., *Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference*, 2018 (arXiv:1712.05877). S. R. Jain et al., *Trained
    Quantization Thresholds*, 2019 (arXiv:1903.08066). A. Kozlov et al., *Neural Network
    Compression Framework for fast model inference*, 2020 (arXiv:2002.08679).

When to use it
    Nearly always: 8 bits usually cost less than half a percent after a few epochs and give
    models a quarter as large. It combines with sparsity, pruning and distillation.
"""

from __future__ import annotations

from nncf.algorithms.initializer_options import (
    InitializerOptions,
    RangeOptions,
    ScopedRangeOptions,
)
from nncf.algorithms.quantization.options import (
    ActivationGroup,
    QuantizationOptions,
    QuantizerGroup,
    QuantizerOverride,
    ScopeOverrides,
)
from nncf.algorithms.staged_options import StagedOptions

__all__ = [
    "ActivationGroup",
    "InitializerOptions",
    "QuantizationOptions",
    "QuantizerGroup",
    "QuantizerOverride",
    "RangeOptions",
    "ScopeOverrides",
    "ScopedRangeOptions",
    "StagedOptions",
]
