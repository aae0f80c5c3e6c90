# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers and cells, written out so that their matrix products can be compressed.

The time steps of one layer share their addresses, and so their CompressionOps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nncf.torch.hooks import CallingMode

State = tuple[torch.Tensor, ...]
CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def hidden_state(state: torch.Tensor) -> torch.Tensor:
    """Mark the state that enters a recurrent step: the place where it can be quantized."""
    return state.view_as(state)


def recurrent_output(steps: torch.Tensor) -> torch.Tensor:
    """Mark the output of a recurrent layer, so that what follows is connected to it."""
    return steps.view_as(steps)


SOURCES: frozenset[Callable[..., Any]] = frozenset([hidden_state, recurrent_output])
"""Markers that start a new stretch of the graph: what feeds them is a cycle over time."""


# cells -------------------------------------------------------------------------------------


def _lstm_step(gates: torch.Tensor, state: State) -> State:
    """Hochreiter and Schmidhuber 1997 with forget gate; gates ordered i, f, g, o."""
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _gru_step(x: torch.Tensor, h: torch.Tensor, state: State) -> State:
    """Cho et al. 2014 in cuDNN's form: the reset gate multiplies the projected state."""
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    h_r, h_z, h_n = h.chunk(3, dim=-1)
    update = torch.sigmoid(x_z + h_z)
    new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return ((1 - update) * new + update * state[0],)


def _advance(cell: str, x: torch.Tensor, h: torch.Tensor, state: State) -> State:
    if cell == "lstm":
        return _lstm_step(x + h, state)
    if cell == "gru":
        return _gru_step(x, h, state)
    return (torch.tanh(x + h) if cell == "rnn_tanh" else torch.relu(x + h),)


def cell_rewrite(cell: str) -> Callable[..., Any]:
    """Return the written-out form of ``torch.<cell>_cell``."""

    def run(
        mode: CallingMode,
        x: torch.Tensor,
        states: Any,
        w_ih: torch.Tensor,
        w_hh: torch.Tensor,
        *biases: torch.Tensor | None,
    ) -> Any:
        b_ih, b_hh = biases or (None, None)
        states = states if isinstance(states, (tuple, list)) else (states,)
        scope = mode.scopes[-1]
        # A cell is one step of the user's own loop: every call shares the first one's addresses.
        mode.rewind({k: n for k, n in mode.counts.items() if k.rpartition("/")[0] != scope})
        projected = mode.call(F.linear, x, w_ih, b_ih)
        recurrent = mode.call(F.linear, mode.call(hidden_state, states[0]), w_hh, b_hh)
        new = _advance(cell, projected, recurrent, tuple(states))
        new = tuple(mode.call(recurrent_output, part) for part in new)
        return new if cell == "lstm" else new[0]

    run.__doc__ = f"``torch.{cell}_cell`` with visible linears."
    return run


# layers ------------------------------------------------------------------------------------


class _Direction:
    """One direction of one layer: its weights, and how one time step runs."""

    def __init__(
        self, mode: CallingMode, cell: str, weights: Sequence[torch.Tensor], *, biased: bool
    ) -> None:
        self.mode = mode
        self.cell = cell
        self.w_ih, self.w_hh = weights[:2]
        self.b_ih, self.b_hh = weights[2:4] if biased else (None, None)
        rest = weights[4:] if biased else weights[2:]
        self.w_hr = rest[0] if rest else None  # projection of the state (Sak et al. 2014)
        self.counts: dict[str, int] = {}

    def project(self, sequence: torch.Tensor) -> torch.Tensor:
        """Run the part of all time steps that needs no state."""
        projected: torch.Tensor = self.mode.call(F.linear, sequence, self.w_ih, self.b_ih)
        self.counts = dict(self.mode.counts)
        return projected

    def step(self, projected: torch.Tensor, state: State) -> State:
        """Return the next state, from a step's part of what ``project`` returned."""
        self.mode.rewind(self.counts)
        visible = self.mode.call(hidden_state, state[0])
        recurrent = self.mode.call(F.linear, visible, self.w_hh, self.b_hh)
        new = _advance(self.cell, projected, recurrent, state)
        if self.w_hr is None:
            return new
        return (self.mode.call(F.linear, new[0], self.w_hr), *new[1:])


def _run(
    direction: _Direction, sequence: torch.Tensor, state: State, backwards: bool
) -> tuple[torch.Tensor, State]:
    """Run ``[time, batch, channels]``, or one sequence without a batch."""
    projected = direction.project(sequence)
    steps = list(range(len(sequence)))
    outputs = {}
    for step in reversed(steps) if backwards else steps:
        state = direction.step(projected[step], state)
        outputs[step] = state[0]
    return torch.stack([outputs[step] for step in steps]), state


def _run_packed(
    direction: _Direction, packed: torch.Tensor, state: State, sizes: list[int], backwards: bool
) -> tuple[torch.Tensor, State]:
    """Run a packed sequence: all first steps, then all second steps…, longest sequence first.

    ``packed`` is ``[sum of sizes, channels]``; ``sizes[t]`` sequences have a step ``t``.
    """
    projected = direction.project(packed).split(sizes)
    outputs = {}
    ended: list[State] = []
    running = tuple(part[:0] for part in state) if backwards else state
    steps = range(len(sizes))
    for step in reversed(steps) if backwards else steps:
        size, before = sizes[step], len(running[0])
        if size > before:  # backwards, a shorter sequence begins at its end
            fresh = [part[before:size] for part in state]
            running = tuple(torch.cat(pair) for pair in zip(running, fresh, strict=True))
        elif size < before:
            ended.insert(0, tuple(part[size:] for part in running))
            running = tuple(part[:size] for part in running)
        running = direction.step(projected[step], running)
        outputs[step] = running[0]
    parts = zip(*[running, *ended], strict=True)
    return torch.cat([outputs[step] for step in steps]), tuple(torch.cat(part) for part in parts)


@dataclass(frozen=True)
class _Settings:
    """The arguments of ``torch.lstm`` and its like behind the sequence.

    ``sizes`` are the batch sizes of a packed sequence, None for a plain one.
    """

    states: State
    weights: Sequence[torch.Tensor]
    biased: bool
    layers: int
    dropout: float
    bidirectional: bool
    batch_first: bool = False
    sizes: list[int] | None = None

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> _Settings:
        sizes = None
        if not isinstance(arguments[2], bool):
            sizes, arguments = arguments[0].tolist(), (*arguments[1:], False)
        states, weights, biased, layers, dropout, train, bidirectional, batch_first = arguments
        states = tuple(states) if isinstance(states, (tuple, list)) else (states,)
        dropout = dropout if train else 0.0
        return cls(states, weights, biased, layers, dropout, bidirectional, batch_first, sizes)


def layer_rewrite(cell: str) -> Callable[..., Any]:
    """Return the written-out form of ``torch.<cell>``, for plain and for packed sequences."""

    def run(mode: CallingMode, sequence: torch.Tensor, *arguments: Any) -> State:
        settings = _Settings.of(arguments)
        if settings.batch_first:
            sequence = mode.call(torch.transpose, sequence, 0, 1)
        finals: list[State] = []
        for layer in range(settings.layers):
            if layer and settings.dropout:
                sequence = F.dropout(sequence, settings.dropout, training=True)
            joined = _run_layer(mode, cell, sequence, settings, finals)
            sequence = mode.call(recurrent_output, joined)
        if settings.batch_first:
            sequence = mode.call(torch.transpose, sequence, 0, 1)
        last = [torch.stack(parts) for parts in zip(*finals, strict=True)]
        return (sequence, *(mode.call(recurrent_output, part) for part in last))

    run.__doc__ = f"``torch.{cell}`` with visible linears."
    return run


def _run_layer(
    mode: CallingMode, cell: str, sequence: torch.Tensor, settings: _Settings, finals: list[State]
) -> torch.Tensor:
    """Run the next layer's directions; append their last states to ``finals``."""
    directions = 2 if settings.bidirectional else 1
    per = len(settings.weights) // (settings.layers * directions)
    halves = []
    for backwards in (False, True)[:directions]:
        number = len(finals)
        own = settings.weights[number * per : (number + 1) * per]
        direction = _Direction(mode, cell, own, biased=settings.biased)
        state = tuple(part[number] for part in settings.states)
        if settings.sizes is None:
            half, final = _run(direction, sequence, state, backwards)
        else:
            half, final = _run_packed(direction, sequence, state, settings.sizes, backwards)
        halves.append(half)
        finals.append(final)
    return torch.cat(halves, dim=-1) if directions == 2 else halves[0]


REWRITES: dict[str, Callable[..., Any]] = {
    **{cell: layer_rewrite(cell) for cell in CELLS},
    **{f"{cell}_cell": cell_rewrite(cell) for cell in CELLS},
}
"""Rewrites by the name of the function that they stand for."""
