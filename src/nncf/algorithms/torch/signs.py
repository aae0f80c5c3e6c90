# SPDX-License-Identifier: Apache-2.0
"""One signed bit: a tensor becomes its sign times a trained scale."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def sign_times_scale(
    x: torch.Tensor, span: torch.Tensor, *, scale: torch.Tensor, gain: torch.Tensor
) -> torch.Tensor:
    """Return ``scale`` where x is above zero, ``−scale`` elsewhere, in the dtype of x.

    ``scale`` broadcasts over x. ``span`` is the parameter behind it, which gets the gradient of
    the scale times ``gain``. Backward the sign counts as the identity for |x| ≤ scale; the scale
    gets sign(x) − x / scale there and sign(x) outside: the gradients of learned step sizes (Esser
    et al. 2020, arXiv:1902.08153) for this grid.
    """
    return _SignTimesScale.apply(x, span, scale, gain)  # type: ignore[no-any-return,no-untyped-call]  # apply is untyped


class _SignTimesScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, span: torch.Tensor, scale: torch.Tensor, gain: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, scale, gain)
        ctx.shape = span.shape
        return torch.where(x > 0, scale, -scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, gain = ctx.saved_tensors
        inside = x.abs() <= scale
        span = None
        if ctx.needs_input_grad[1]:
            pull = torch.where(x > 0, 1.0, -1.0) - torch.where(inside, x.float() / scale, 0.0)
            span = _summed(gradient.float() * pull, scale) * gain
            span = span.reshape(ctx.shape)
        return gradient * inside, span, None, None


def _summed(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sum over all axes along which ``like`` has one element."""
    if like.numel() == 1:
        return values.sum().reshape(like.shape)
    return values.sum([axis for axis, size in enumerate(like.shape) if size == 1], keepdim=True)
