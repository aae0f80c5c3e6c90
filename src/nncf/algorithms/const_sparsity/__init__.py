# SPDX-License-Identifier: Apache-2.0
"""Const sparsity: keep the zeros that are there.

The idea
    A model that was made sparse earlier is trained on, or quantized, without losing its zeros:
    masks are taken as they come and never change.

The formula
    ``w · mask`` with ``mask = [w ≠ 0]`` of the weights that the model has when it is compressed,
    or that are loaded into it.

When to use it
    As a second step after magnitude or RB sparsity, together with quantization.
"""

from __future__ import annotations

from nncf.algorithms.const_sparsity.options import ConstSparsityOptions

__all__ = ["ConstSparsityOptions"]
