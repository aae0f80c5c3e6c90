# SPDX-License-Identifier: Apache-2.0
"""Choosing what to drop: the least important weights of several layers, exactly as many as asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nncf.algorithms.magnitude_sparsity.mask import MagnitudeMask
from nncf.algorithms.magnitude_sparsity.options import numbers
from nncf.algorithms.torch.weight_mask import WeightMask
from nncf.compression.layout import Insert


def make_op(insert: Insert) -> MagnitudeWeightMask:
    """Return the running op of one Insert whose description is a MagnitudeMask."""
    assert isinstance(insert.op, MagnitudeMask)
    return MagnitudeWeightMask(insert.op, insert.shape)


class MagnitudeWeightMask(WeightMask):
    """A mask that can be chosen anew, together with others, by the size of the weights."""

    def __init__(self, description: MagnitudeMask, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.description = description

    @staticmethod
    @torch.no_grad()
    def choose(
        masks: Sequence[MagnitudeWeightMask],
        weights: Sequence[torch.Tensor],
        level: float,
        *,
        importance: str,
    ) -> float:
        """Drop ``⌊N · level⌋`` of the N weights; return the greatest importance dropped.

        That is 0 when nothing is. Of equally important weights the first are dropped: masks in
        the order given, weights in memory order of a contiguous tensor.
        """
        values = [_importance(weight, importance) for weight in weights]
        count = int(sum(value.numel() for value in values) * level + 1e-6)  # 100 · 0.29 < 29
        if count == 0:
            for mask, value in zip(masks, values, strict=True):
                mask.keep(torch.ones_like(value, dtype=torch.bool))
            return 0.0
        device = values[0].device
        flat = torch.cat(
            [mask.eligible(v).reshape(-1).to(device) for mask, v in zip(masks, values, strict=True)]
        )
        threshold = _smallest(flat, count)
        kept = ~_dropped(flat, threshold, count)
        parts = kept.split([value.numel() for value in values])
        for mask, value, part in zip(masks, values, parts, strict=True):
            mask.keep(part.view(value.shape).to(value.device))
        return threshold

    def eligible(self, importance: torch.Tensor) -> torch.Tensor:
        """Return importances, infinite where the pattern keeps the weight whatever the level."""
        pattern, axis = self.description.pattern, self.description.axis
        if pattern is None:
            return importance
        kept, group = numbers(pattern)
        return importance.masked_fill(
            kept_by_pattern(importance, kept, group, axis=axis), torch.inf
        )


def kept_by_pattern(importance: torch.Tensor, kept: int, group: int, *, axis: int) -> torch.Tensor:
    """Return where the ``kept`` largest of each ``group`` neighbours along an axis are, as bools.

    Of equals the later ones are kept.
    """
    moved = importance.movedim(axis, -1)
    members = moved.reshape(-1, group).t().contiguous()  # a row for each place in the group
    smaller = torch.zeros(members.shape, dtype=torch.int16, device=members.device)
    for later in range(group):
        for earlier in range(later):
            first = members[earlier] <= members[later]
            smaller[later] += first
            smaller[earlier] += ~first
    found = smaller >= group - kept
    return found.t().reshape(moved.shape).movedim(-1, axis)


def _importance(weight: torch.Tensor, kind: str) -> torch.Tensor:
    values = weight.detach().float().abs()
    if kind == "abs":
        return values
    return values / torch.linalg.vector_norm(values).clamp(min=torch.finfo(values.dtype).tiny)


def _smallest(flat: torch.Tensor, count: int) -> float:
    """Return the ``count``-th smallest value."""
    if flat.device.type == "cpu":  # numpy's selection is an order of magnitude faster
        return float(np.partition(flat.numpy(), count - 1)[count - 1])
    return float(flat.kthvalue(count).values)


def _dropped(flat: torch.Tensor, threshold: float, count: int) -> torch.Tensor:
    """Return the ``count`` smallest as bools: all below the threshold, then the first of its equals."""
    dropped = flat < threshold
    equals = flat == threshold
    missing = count - int(torch.count_nonzero(dropped))
    dropped[equals.nonzero().flatten()[:missing]] = True
    return dropped
