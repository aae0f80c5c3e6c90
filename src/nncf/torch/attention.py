# SPDX-License-Identifier: Apache-2.0
"""Fused attention, written out so that its matrix products can be compressed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from nncf.torch.hooks import CallingMode
from nncf.torch.op_kinds import OPERATOR_NAME


def attention_probabilities(
    scores: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float,
    causal: bool = False,
    dropout: float = 0.0,
    safe: bool = True,
) -> torch.Tensor:
    """Return ``softmax(scores * scale + mask)`` over the last axis, with dropout.

    ``scores`` is ``[…, queries, keys]``; a boolean mask is True where attention is allowed.
    ``safe``: a query that may attend to nothing gets zeros, else NaN.
    """
    scores = scores * scale
    if causal:
        queries, keys = scores.shape[-2:]
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1)
    if mask is not None and safe:
        nothing = (scores == -math.inf).all(dim=-1, keepdim=True)
        weights = weights.masked_fill(nothing, 0.0)
    return F.dropout(weights, dropout, training=dropout > 0)


setattr(attention_probabilities, OPERATOR_NAME, "softmax")


def scaled_dot_product_attention(  # noqa: PLR0913 (the signature of the function it stands for)
    mode: CallingMode,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Vaswani et al. 2017, equation 1: ``softmax(Q Kᵀ / √d) V``, two visible matmuls."""
    if enable_gqa:
        key = mode.call(torch.repeat_interleave, key, query.size(-3) // key.size(-3), dim=-3)
        value = mode.call(torch.repeat_interleave, value, query.size(-3) // value.size(-3), dim=-3)
    scores = mode.call(torch.matmul, query, mode.call(torch.transpose, key, -2, -1))
    factor = 1.0 / math.sqrt(query.size(-1)) if scale is None else scale
    weights = mode.call(
        attention_probabilities,
        *(scores, attn_mask),
        scale=factor,
        causal=is_causal,
        dropout=dropout_p,
    )
    return mode.call(torch.matmul, weights, value)  # type: ignore[no-any-return]  # call returns Any


def multi_head_attention_forward(  # noqa: PLR0913 (the signature of the function it stands for)
    mode: CallingMode,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim_to_check: int,  # noqa: ARG001 (what PyTorch checks holds already)
    num_heads: int,
    in_proj_weight: torch.Tensor | None,
    in_proj_bias: torch.Tensor | None,
    bias_k: torch.Tensor | None,
    bias_v: torch.Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: torch.Tensor,
    out_proj_bias: torch.Tensor | None,
    training: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: torch.Tensor | None = None,
    k_proj_weight: torch.Tensor | None = None,
    v_proj_weight: torch.Tensor | None = None,
    static_k: None = None,  # noqa: ARG001 (calls that give it are not rewritten)
    static_v: None = None,  # noqa: ARG001 (the same)
    average_attn_weights: bool = True,
    is_causal: bool = False,  # noqa: ARG001 (says only that attn_mask is causal)
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``nn.MultiheadAttention`` on ``[time, batch, channels]`` with visible linears and matmuls."""
    unbatched = query.dim() == 2
    if unbatched:
        query, key, value = _one_batch(mode, query, key, value)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    projected = _project(mode, (query, key, value), in_proj_weight, in_proj_bias, separate)
    q, k, v = (_split_heads(mode, x, num_heads) for x in projected)
    biases = [None if b is None else b.view(1, num_heads, 1, -1) for b in (bias_k, bias_v)]
    k, v, extra = _lengthen(mode, (k, v), biases, add_zero_attn)
    mask = _attention_mask(attn_mask, key_padding_mask, q, extra)
    scores = mode.call(torch.matmul, q, mode.call(torch.transpose, k, -2, -1))
    weights = mode.call(
        attention_probabilities,
        *(scores, mask),
        scale=1.0 / math.sqrt(q.size(-1)),
        dropout=dropout_p if training else 0.0,
        safe=not need_weights,  # as PyTorch does: only its fused form is safe
    )
    mixed = mode.call(torch.permute, mode.call(torch.matmul, weights, v), (2, 0, 1, 3))
    mixed = mode.call(torch.reshape, mixed, query.shape)
    output = mode.call(F.linear, mixed, out_proj_weight, out_proj_bias)
    shown = weights.mean(dim=1) if average_attn_weights else weights
    if unbatched:
        output, shown = mode.call(torch.squeeze, output, 1), shown.squeeze(0)
    return output, (shown if need_weights else None)


def _one_batch(mode: CallingMode, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Add an axis for the batch; tensors that are one object stay one object."""
    made = {id(x): mode.call(torch.unsqueeze, x, 1) for x in inputs}
    return [made[id(x)] for x in inputs]


def _project(
    mode: CallingMode,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    separate: tuple[Any, Any, Any] | None,
) -> Sequence[torch.Tensor]:
    query, key, value = inputs
    biases = (None, None, None) if bias is None else bias.chunk(3)
    if separate is not None:
        weights: Sequence[torch.Tensor] = separate
    elif query is key and key is value:
        projected = mode.call(F.linear, query, weight, bias)
        return mode.call(torch.chunk, projected, 3, dim=-1)  # type: ignore[no-any-return]  # call returns Any
    else:
        weights = mode.call(torch.chunk, weight, 3)
    return [mode.call(F.linear, x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]


def _split_heads(mode: CallingMode, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """``[time, batch, channels]`` to ``[batch, heads, time, channels per head]``."""
    length, batch, width = tensor.shape
    split = mode.call(torch.reshape, tensor, (length, batch, heads, width // heads))
    return mode.call(torch.permute, split, (1, 2, 0, 3))  # type: ignore[no-any-return]  # call returns Any


def _lengthen(
    mode: CallingMode,
    keys_values: tuple[torch.Tensor, torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    zero: bool,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Append the trained key and value (``bias_k``, ``bias_v``) and a zero; return how many."""
    extra = 0
    lengthened = []
    for tensor, bias in zip(keys_values, biases, strict=True):
        batch, heads, _, width = tensor.shape
        parts = [tensor]
        if bias is not None:
            parts.append(bias.expand(batch, heads, 1, width))
        if zero:
            parts.append(tensor.new_zeros(batch, heads, 1, width))
        extra = len(parts) - 1
        lengthened.append(mode.call(torch.cat, parts, dim=2) if extra else tensor)
    return lengthened[0], lengthened[1], extra


def _attention_mask(
    mask: torch.Tensor | None, padding: torch.Tensor | None, query: torch.Tensor, extra: int
) -> torch.Tensor | None:
    """Join both masks of ``nn.MultiheadAttention`` (True forbids) into one that is added.

    ``mask`` is ``[queries, keys]`` or ``[batch * heads, queries, keys]``, ``padding``
    ``[batch, keys]``; what was appended to the keys is not masked.
    """
    parts = []
    if mask is not None:
        batch, heads = query.shape[:2]
        parts.append(mask.view(batch, heads, *mask.shape[1:]) if mask.dim() == 3 else mask)
    if padding is not None:
        parts.append(padding[:, None, None, :])
    total = None
    for part in parts:
        if part.dtype is torch.bool:
            zeros = torch.zeros_like(part, dtype=query.dtype)
            part = zeros.masked_fill_(part, -math.inf)  # noqa: PLW2901 (the same mask, to be added)
        total = part if total is None else total + part
    return total if total is None or not extra else F.pad(total, (0, extra))
