# SPDX-License-Identifier: Apache-2.0
"""Options of const sparsity."""

from __future__ import annotations

from typing import ClassVar, Literal

from nncf.algorithms.sparsity_options import SPARSITY_ROLE, ScopeOptions
from nncf.options import option


class ConstSparsityOptions(ScopeOptions):
    """Settings of ``{"algorithm": "const_sparsity"}``."""

    role: ClassVar[str] = SPARSITY_ROLE

    algorithm: Literal["const_sparsity"] = option("const_sparsity", "Names this algorithm.")
