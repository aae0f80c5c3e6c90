# SPDX-License-Identifier: Apache-2.0
"""Recognise masks: tensors that hold minus infinity, or a number meant as such.

Attention adds them to its scores. They are no activations: a range that spans minus infinity
would leave no resolution for anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from nncf.graph.kinds import Kind

HUGE = 1e8
"""Numbers of at least this size stand for infinity (masks are made with 1e9, 1e30 or the
largest number of the type)."""

_MAKING = frozenset(
    ["add", "subtract", "multiply", "scatter", "gather", "pad", "maximum", "minimum"]
)
"""Kinds whose result is a mask, or is masked, when they take a huge number."""

_SPREADING = _MAKING | frozenset(
    ["identity", "concat", "split", "reshape", "squeeze", "unsqueeze", "transpose", "expand"]
    + ["repeat", "slice", "roll", "negate", "dropout"]
)
"""Kinds whose result is masked when an operand is."""


class Masks:
    """The tensors of one forward that are masks or masked."""

    def __init__(self) -> None:
        self._found: dict[int, torch.Tensor] = {}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._found

    def add_if_huge(self, tensor: torch.Tensor) -> None:
        """Look at the values of a tensor that comes from outside."""
        if tensor.is_floating_point() and tensor.numel() and _is_huge(tensor):
            self._found[id(tensor)] = tensor

    def note(
        self,
        kind: Kind,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
        inputs: Iterable[torch.Tensor],
        outputs: Iterable[torch.Tensor],
    ) -> None:
        """Note what a call makes of masks and huge numbers."""
        if kind.name not in _SPREADING:
            return
        masked = any(tensor in self for tensor in inputs)
        if not masked and kind.name in _MAKING:
            args, kwargs = arguments
            masked = any(_is_huge_scalar(value) for value in (*args, *kwargs.values()))
        if masked:
            self._found.update((id(t), t) for t in outputs if t.is_floating_point())

    def forget(self) -> None:
        self._found.clear()


def _is_huge_scalar(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and value.is_floating_point() and _is_huge(value)
    return isinstance(value, float) and abs(value) >= HUGE


def _is_huge(tensor: torch.Tensor) -> bool:
    return bool(tensor.detach().abs().amax() >= HUGE)
