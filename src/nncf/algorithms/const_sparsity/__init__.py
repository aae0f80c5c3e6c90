# SPDX-License-Identifier: Apache-2.0
"""Const sparsity: keep the zeros that are there.

The idea
    A model that was made sparse earlier is trained on, or quantized, without losing its zeros:
    masks are taken as they come and never change.

The formula
    ``w · mask`` with a constant mask.

When to use it
    As a second step after magnitude or RB sparsity, together with quantization.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from nncf.algorithms.sparsity_options import SPARSITY_ROLE, ScopeOptions
from nncf.options import option


class ConstSparsityOptions(ScopeOptions):
    """Settings of ``{"algorithm": "const_sparsity"}``."""

    role: ClassVar[str] = SPARSITY_ROLE

    algorithm: Literal["const_sparsity"] = option("const_sparsity", "Names this algorithm.")
