# SPDX-License-Identifier: Apache-2.0
"""Functions that hide matrix products, written out so that these can be compressed.

``nn.MultiheadAttention``, fused attention and recurrent layers are single opaque calls for a
TorchFunctionMode. Each rewrite computes the same values with visible calls: ``mode.call(f, x)``
gives ``f(x)`` an address of its own. Where nothing inside is compressed the original function
runs. ``unreached_reason`` tells which calls have no rewrite, and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F


class CallingMode(Protocol):
    """The part of a ScopedMode that rewrites need."""

    counts: dict[str, int]
    scopes: list[str]

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any: ...

    def rewind(self, counts: Mapping[str, int]) -> None: ...


def hidden_state(state: torch.Tensor) -> torch.Tensor:
    """Mark the state that enters a recurrent step: the place where it can be quantized."""
    return state.view_as(state)


def recurrent_output(steps: torch.Tensor) -> torch.Tensor:
    """Mark the output of a recurrent layer, so that what follows is connected to it."""
    return steps.view_as(steps)


SOURCES: frozenset[Callable[..., Any]] = frozenset([hidden_state, recurrent_output])
"""Markers that start a new stretch of the graph: what feeds them is a cycle over time."""


# attention --------------------------------------------------------------------------------


def attention_probabilities(
    scores: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: bool, dropout: float
) -> torch.Tensor:
    """Return ``softmax(scores * scale + mask)`` over the last axis, with dropout.

    ``scores`` is ``[…, queries, keys]``; a boolean mask is True where attention is allowed.
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
    return F.dropout(torch.softmax(scores, dim=-1), dropout, training=dropout > 0)


def scaled_dot_product_attention(
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
    weights = mode.call(attention_probabilities, scores, attn_mask, factor, is_causal, dropout_p)
    return mode.call(torch.matmul, weights, value)  # type: ignore[no-any-return]  # call returns Any


def multi_head_attention_forward(
    mode: CallingMode,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: torch.Tensor | None,
    in_proj_bias: torch.Tensor | None,
    bias_k: None,
    bias_v: None,
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
    static_k: None = None,
    static_v: None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``nn.MultiheadAttention`` on ``[time, batch, channels]`` with visible linears and matmuls."""
    unbatched = query.dim() == 2
    if unbatched:
        query, key, value = (mode.call(torch.unsqueeze, x, 1) for x in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    projected = _project(mode, (query, key, value), in_proj_weight, in_proj_bias, separate)
    length, batch, width = query.shape
    heads = [_split_heads(mode, x, num_heads) for x in projected]
    mask = _attention_mask(attn_mask, key_padding_mask, heads[0], num_heads)
    scores = mode.call(torch.matmul, heads[0], mode.call(torch.transpose, heads[1], -2, -1))
    factor = 1.0 / math.sqrt(heads[0].size(-1))
    causal = is_causal and attn_mask is None
    dropout = dropout_p if training else 0.0
    weights = mode.call(attention_probabilities, scores, mask, factor, causal, dropout)
    mixed = mode.call(torch.matmul, weights, heads[2])
    mixed = mode.call(torch.reshape, mode.call(torch.permute, mixed, (2, 0, 1, 3)),
                      (length, batch, width))  # fmt: skip
    output = mode.call(F.linear, mixed, out_proj_weight, out_proj_bias)
    shown = weights.mean(dim=1) if average_attn_weights else weights
    if unbatched:
        output, shown = mode.call(torch.squeeze, output, 1), shown.squeeze(0)
    return output, (shown if need_weights else None)


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
        return [
            mode.call(F.linear, x, w, b) for x, w, b in zip(inputs, separate, biases, strict=True)
        ]
    assert weight is not None
    if query is key and key is value:
        return mode.call(torch.chunk, mode.call(F.linear, query, weight, bias), 3, dim=-1)  # type: ignore[no-any-return]  # call returns Any
    weights = mode.call(torch.chunk, weight, 3)
    return [mode.call(F.linear, x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]


def _split_heads(mode: CallingMode, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """``[time, batch, channels]`` to ``[batch, heads, time, channels per head]``."""
    length, batch, width = tensor.shape
    split = mode.call(torch.reshape, tensor, (length, batch, heads, width // heads))
    return mode.call(torch.permute, split, (1, 2, 0, 3))  # type: ignore[no-any-return]  # call returns Any


def _attention_mask(
    mask: torch.Tensor | None, padding: torch.Tensor | None, query: torch.Tensor, heads: int
) -> torch.Tensor | None:
    """Join both masks of ``nn.MultiheadAttention`` (True forbids) into one additive mask."""
    total = None
    for part in (mask, padding):
        if part is None:
            continue
        if part.dtype is torch.bool:
            zeros = torch.zeros_like(part, dtype=query.dtype)
            part = zeros.masked_fill_(part, -math.inf)
        if (
            part is not mask
            and part.dim() == 2
            and padding is not None
            and part.shape == padding.shape
        ):
            part = part[:, None, None, :]
        elif part.dim() == 3:
            part = part.view(-1, heads, *part.shape[1:])
        total = part if total is None else total + part
    return total


# recurrent layers -------------------------------------------------------------------------


def _lstm_step(gates: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Hochreiter and Schmidhuber 1997 with forget gate; gates ordered i, f, g, o."""
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gru_step(
    x: torch.Tensor, h: torch.Tensor, state: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Cho et al. 2014 in cuDNN's form: the reset gate multiplies the projected state."""
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    h_r, h_z, h_n = h.chunk(3, dim=-1)
    update = torch.sigmoid(x_z + h_z)
    new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return ((1 - update) * new + update * state[0],)


def _advance(
    cell: str, x: torch.Tensor, h: torch.Tensor, state: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    if cell == "lstm":
        return _lstm_step(x + h, state)
    if cell == "gru":
        return _gru_step(x, h, state)
    return (torch.tanh(x + h) if cell == "rnn_tanh" else torch.relu(x + h),)


def _run_direction(
    mode: CallingMode,
    cell: str,
    sequence: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    weights: Sequence[torch.Tensor],
    backwards: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run one direction over ``[time, batch, channels]``: all time steps share their addresses."""
    w_ih, w_hh, b_ih, b_hh = (*weights, None, None)[:4]
    projected = mode.call(F.linear, sequence, w_ih, b_ih)
    steps = range(len(sequence) - 1, -1, -1) if backwards else range(len(sequence))
    outputs: list[torch.Tensor] = []
    counts = dict(mode.counts)
    for step in steps:
        mode.rewind(counts)
        visible = mode.call(hidden_state, state[0])
        recurrent = mode.call(F.linear, visible, w_hh, b_hh)
        state = _advance(cell, projected[step], recurrent, state)
        outputs.append(state[0])
    if backwards:
        outputs.reverse()
    return torch.stack(outputs), state


def _recurrent(cell: str) -> Callable[..., Any]:
    def run(
        mode: CallingMode,
        sequence: torch.Tensor,
        states: Any,
        flat_weights: Sequence[torch.Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[torch.Tensor, ...]:
        states = states if isinstance(states, (tuple, list)) else (states,)
        directions, per = (2 if bidirectional else 1), (4 if has_biases else 2)
        if batch_first:
            sequence = mode.call(torch.transpose, sequence, 0, 1)
        finals: list[tuple[torch.Tensor, ...]] = []
        for layer in range(num_layers):
            halves = []
            for direction in range(directions):
                index = layer * directions + direction
                weights = flat_weights[index * per : (index + 1) * per]
                state = tuple(part[index] for part in states)
                half, final = _run_direction(mode, cell, sequence, state, weights, direction == 1)
                halves.append(half)
                finals.append(final)
            joined = torch.cat(halves, dim=-1) if directions == 2 else halves[0]
            if dropout and train and layer < num_layers - 1:
                joined = F.dropout(joined, dropout, training=True)
            sequence = mode.call(recurrent_output, joined)
        if batch_first:
            sequence = mode.call(torch.transpose, sequence, 0, 1)
        last = [torch.stack(parts) for parts in zip(*finals, strict=True)]
        return (sequence, *(mode.call(recurrent_output, part) for part in last))

    run.__doc__ = f"``torch.{cell}`` on a plain (not packed) sequence with visible linears."
    return run


def _cell(cell: str) -> Callable[..., Any]:
    def run(
        mode: CallingMode,
        x: torch.Tensor,
        states: Any,
        w_ih: torch.Tensor,
        w_hh: torch.Tensor,
        b_ih: torch.Tensor | None = None,
        b_hh: torch.Tensor | None = None,
    ) -> Any:
        states = states if isinstance(states, (tuple, list)) else (states,)
        scope = mode.scopes[-1]
        # A cell is one step of the user's own loop: every call shares the first one's addresses.
        counts = {key: n for key, n in mode.counts.items() if key.rpartition("/")[0] != scope}
        mode.rewind(counts)
        projected = mode.call(F.linear, x, w_ih, b_ih)
        recurrent = mode.call(F.linear, mode.call(hidden_state, states[0]), w_hh, b_hh)
        new = _advance(cell, projected, recurrent, states)
        new = tuple(mode.call(recurrent_output, part) for part in new)
        return new if cell == "lstm" else new[0]

    run.__doc__ = f"``torch.{cell}_cell`` with visible linears."
    return run


REWRITES: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "multi_head_attention_forward": multi_head_attention_forward,
    **{name: _recurrent(name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"{name}_cell": _cell(name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}
"""Rewrites by the name of the function they stand for; the first argument is the mode."""

FUNCTIONS: dict[Callable[..., Any], str] = {
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    F.multi_head_attention_forward: "multi_head_attention_forward",
    **{getattr(torch, name): name for name in REWRITES if hasattr(torch, name)},
    **{function: function.__name__ for function in (*SOURCES, attention_probabilities)},
}
"""Functions that a mode must look at because of the rewrites."""


def unreached_reason(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return why a call hides matrix products that cannot be compressed, None if it does not."""
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        if len(args) > 3 and isinstance(args[3], (list, tuple)):
            return f"{name} on a packed sequence runs as one opaque call; pass a padded tensor"
        per = 4 if args[3] else 2
        directions = 2 if args[7] else 1
        if len(args[2]) != args[4] * directions * per:
            return f"{name} with projections (proj_size > 0) runs as one opaque call"
    if name == "multi_head_attention_forward":
        hidden = ("bias_k", "bias_v", "static_k", "static_v")
        bound = {**dict(zip(("q", "k", "v", "e", "h", "w", "b", "bias_k", "bias_v", "zero"), args,
                            strict=False)), **kwargs}  # fmt: skip
        if any(bound.get(key) is not None for key in hidden) or bound.get("zero"):
            return (
                "multi-head attention with bias_k, add_zero_attn or static keys is one opaque call"
            )
    return None
