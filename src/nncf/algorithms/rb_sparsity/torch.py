# SPDX-License-Identifier: Apache-2.0
"""The learned mask as a PyTorch module: drawn at random in training, fixed in evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nncf.algorithms.rb_sparsity.mask import LearnedMask, pull
from nncf.algorithms.torch.weight_mask import WeightMask
from nncf.compression.layout import Insert
from nncf.torch import kernels

KEPT_AT_FIRST = 0.99
"""Probability with which a new mask keeps a weight."""


def loss(masks: Sequence[LearnedWeightMask], sizes: Sequence[int], *, is_local: bool) -> Any:
    """Return what pulls masks to their levels, 0 once they are frozen."""
    if masks[0].frozen:
        return 0.0
    levels = [mask.level for mask in masks]
    return pull([mask.kept_count() for mask in masks], sizes, levels, is_local)


def make_op(insert: Insert) -> LearnedWeightMask:
    """Return the running op of one Insert whose description is a LearnedMask."""
    assert isinstance(insert.op, LearnedMask)
    return LearnedWeightMask(insert.op, insert.shape, name=insert.name)


class LearnedWeightMask(WeightMask):
    """Keeps each weight with the probability ``sigmoid(logits)``, which is trained.

    In training the mask is ``logits + logit(u) > 0`` with ``u`` from U(0, 1), in evaluation
    ``logits > 0``; backward, the step is taken for a sigmoid. ``u`` is a function of ``key`` and
    the weight's place, and the key changes at the end of a backward pass that ``kept_count`` took
    part in: between two of these every forward sees the same mask, wherever and however often
    it is computed. ``level`` is what its loss aims at. ``frozen`` means that ``mask`` holds for good; until then it is brought up to
    date whenever the state dict is taken.
    """

    key: torch.Tensor

    def __init__(self, description: LearnedMask, shape: tuple[int, ...], name: str = "") -> None:
        super().__init__(shape)
        self.description = description
        self.frozen = False
        self.level = 0.0
        start = math.log(KEPT_AT_FIRST / (1 - KEPT_AT_FIRST))
        self.logits = nn.Parameter(torch.full(shape, start))
        self.register_buffer("key", torch.tensor([_first_key(name)]))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.frozen:
            return kernels.passed(super().forward(weight), [self.logits])
        if not self.training and not torch.is_grad_enabled():
            return super().forward(weight)
        key = self.key if self.training else None
        return _masked(weight, self.logits, key, self._multiplier)

    @property
    def _multiplier(self) -> float:
        multiplier = self.description.lr_multiplier
        return 1.0 if multiplier is None else multiplier

    def kept(self) -> torch.Tensor:
        """Return what stays in evaluation, as bools."""
        return super().kept() if self.frozen else self.logits.detach() > 0

    def kept_count(self) -> torch.Tensor:
        """Return how many weights stay in evaluation, as a float32 number with a gradient.

        Once the backward pass through it is over, the next mask is drawn.
        """
        found: torch.Tensor = _Count.apply(self.logits, self._multiplier, self.draw)  # type: ignore[no-untyped-call]  # apply is untyped
        return found

    def draw(self) -> None:
        """Let the following training forwards see another random mask."""
        kernels.next_key(self.key)

    def freeze(self, freeze: bool) -> None:
        """Keep the mask of evaluation from now on, or with False go on learning from the logits."""
        if freeze and not self.frozen:
            self.keep(self.kept())
        self.frozen = freeze

    @torch.no_grad()
    def probability_sum(self) -> float:
        """Return the sum over all weights of the probability to be kept."""
        if self.frozen:
            return float(torch.count_nonzero(self.kept()))
        return float(self.logits.float().sigmoid().sum(dtype=torch.float64))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self.frozen and self.logits.device.type != "meta":
            self.keep(self.kept())
        super()._save_to_state_dict(destination, prefix, keep_vars)


def _first_key(name: str) -> int:
    """Return the first key of an op: it follows from ``torch.manual_seed`` and the op's name.

    The random stream of the training script is not touched.
    """
    text = f"{torch.initial_seed()} {name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _noisy(logits: torch.Tensor, key: torch.Tensor | None) -> torch.Tensor:
    """Return ``logits + logit(u)`` as float32, without a key the logits themselves."""
    if key is None:
        return logits.float()
    return torch.logit(kernels.uniform(key, logits.shape)).add_(logits)


def _slope(noisy: torch.Tensor) -> torch.Tensor:
    kept = torch.sigmoid(noisy)
    return kept * (1 - kept)


class _Masked(torch.autograd.Function):
    """Drops weights; saves nothing but its inputs, and draws the same mask again for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        logits: torch.Tensor,
        key: torch.Tensor | None,
        multiplier: float,
    ) -> torch.Tensor:
        key = None if key is None else key.clone()
        ctx.save_for_backward(weight, logits, key)
        ctx.multiplier = multiplier
        return torch.where(_noisy(logits, key) > 0, weight, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, logits, key = ctx.saved_tensors
        noisy = _noisy(logits, key)
        to_weight = to_logits = None
        if ctx.needs_input_grad[0]:
            to_weight = torch.where(noisy > 0, gradient, 0.0)
        if ctx.needs_input_grad[1]:
            slope = _slope(noisy).mul_(gradient).mul_(weight).mul_(ctx.multiplier)
            to_logits = slope.to(logits.dtype)
        return to_weight, to_logits, None, None


def _masked(
    weight: torch.Tensor, logits: torch.Tensor, key: torch.Tensor | None, multiplier: float
) -> torch.Tensor:
    return _Masked.apply(weight, logits, key, multiplier)  # type: ignore[no-any-return,no-untyped-call]  # apply is untyped


class _Count(torch.autograd.Function):
    """Counts positive logits, and calls ``then`` when the backward pass is over.

    At its end and not within: until then a checkpoint may compute a forward again.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, multiplier: float, then: Any) -> torch.Tensor:
        ctx.save_for_backward(logits)
        ctx.multiplier, ctx.then = multiplier, then
        return torch.count_nonzero(logits > 0).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        engine = torch.autograd.Variable._execution_engine  # noqa: SLF001  # has no public name
        engine.queue_callback(ctx.then)
        slope = _slope(logits.float()).mul_(gradient * ctx.multiplier)
        return slope.to(logits.dtype), None, None
