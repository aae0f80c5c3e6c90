# SPDX-License-Identifier: Apache-2.0
"""Functions that hide matrix products, and which written-out form stands for each.

``nn.MultiheadAttention``, fused attention, recurrent layers and ``einsum`` are single opaque
calls for a TorchFunctionMode. A rewrite computes the same values with visible calls:
``mode.call(f, x)`` gives ``f(x)`` an address of its own. Where nothing inside is compressed the
original function runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from nncf.torch import attention, products, recurrence
from nncf.torch.recurrence import SOURCES

__all__ = ["FUNCTIONS", "SOURCES", "rewrite_of", "unreached_reason"]

_REWRITES: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": attention.scaled_dot_product_attention,
    "multi_head_attention_forward": attention.multi_head_attention_forward,
    **recurrence.REWRITES,
    **products.REWRITES,
}

FUNCTIONS: dict[Callable[..., Any], str] = {
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    F.multi_head_attention_forward: "multi_head_attention_forward",
    **{getattr(torch, name): name for name in _REWRITES if hasattr(torch, name)},
    **{function: function.__name__ for function in SOURCES},
    attention.attention_probabilities: "softmax",
}
"""Functions that a mode must look at because of the rewrites, and their names in addresses."""

_OPAQUE = {
    name: f"{name} is one opaque call; write it with matmul"
    for name in ("addbmm", "addmv", "chain_matmul", "linalg_multi_dot", "inner", "conv_tbc")
}
_STATIC = ("static_k", "static_v")


def rewrite_of(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """Return the written-out form of a call, None when it has or needs none.

    Its first argument is the mode, the others are those of the call.
    """
    rewrite = _REWRITES.get(name)
    if rewrite is None or unreached_reason(name, args, kwargs) is not None:
        return None
    alone = name == "einsum" and (len(args) < 3 and isinstance(args[1], torch.Tensor))
    return None if alone else rewrite


def unreached_reason(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return why a call hides matrix products that cannot be compressed, None if it does not."""
    if name == "einsum":
        return products.einsum_reason(args[0])
    if name == "multi_head_attention_forward" and any(
        kwargs.get(key) is not None for key in _STATIC
    ):
        return "multi-head attention with static keys or values is one opaque call"
    if name == "tensordot" and kwargs.get("out") is not None:
        return "tensordot with out= is one opaque call"
    return _OPAQUE.get(name)
