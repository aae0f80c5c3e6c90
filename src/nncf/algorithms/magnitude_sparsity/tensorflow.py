# SPDX-License-Identifier: Apache-2.0
"""Choosing what to drop: the least important weights of several layers, exactly as many as asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from nncf.algorithms.magnitude_sparsity.mask import MagnitudeMask
from nncf.algorithms.magnitude_sparsity.options import numbers
from nncf.algorithms.tensorflow.weight_mask import WeightMask
from nncf.compression.layout import Insert

Array = NDArray[Any]


def make_op(insert: Insert, name: str) -> MagnitudeWeightMask:
    """Return the running op of one Insert whose description is a MagnitudeMask."""
    assert isinstance(insert.op, MagnitudeMask)
    return MagnitudeWeightMask(insert.op, insert.shape, name=name)


@keras.saving.register_keras_serializable("nncf")
class MagnitudeWeightMask(WeightMask):
    """A mask that can be chosen anew, together with others, by the size of the weights."""

    def __init__(
        self, description: MagnitudeMask | dict[str, Any], shape: tuple[int, ...], **kwargs: Any
    ) -> None:
        super().__init__(shape, **kwargs)
        is_state = isinstance(description, dict)
        self.description = MagnitudeMask.from_state(description) if is_state else description

    @staticmethod
    def choose(
        masks: Sequence[MagnitudeWeightMask],
        weights: Sequence[Any],
        level: float,
        *,
        importance: str,
    ) -> float:
        """Drop ``⌊N · level⌋`` of the N weights; return the greatest importance dropped.

        That is 0 when nothing is. Of equally important weights the first are dropped: masks in
        the order given, weights in memory order.
        """
        values = [_importance(np.asarray(weight), importance) for weight in weights]
        count = int(sum(value.size for value in values) * level + 1e-6)  # 100 · 0.29 < 29
        if count == 0:
            for mask, value in zip(masks, values, strict=True):
                mask.keep(np.ones(value.shape, np.bool_))
            return 0.0
        parts = [mask.eligible(v).reshape(-1) for mask, v in zip(masks, values, strict=True)]
        flat = np.concatenate(parts)
        threshold = float(np.partition(flat, count - 1)[count - 1])
        kept = ~_dropped(flat, threshold, count)
        ends = np.cumsum([part.size for part in parts])[:-1]
        for mask, value, part in zip(masks, values, np.split(kept, ends), strict=True):
            mask.keep(part.reshape(value.shape))
        return threshold

    def eligible(self, importance: Array) -> Array:
        """Return importances, infinite where the pattern keeps the weight whatever the level."""
        pattern, axis = self.description.pattern, self.description.axis
        if pattern is None:
            return importance
        kept, group = numbers(pattern)
        stays = kept_by_pattern(importance, kept, group, axis=axis)
        return np.where(stays, np.inf, importance)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "description": self.description.to_state()}


def kept_by_pattern(importance: Array, kept: int, group: int, *, axis: int) -> NDArray[np.bool_]:
    """Return where the ``kept`` largest of each ``group`` neighbours along an axis are, as bools.

    Of equals the later ones are kept.
    """
    moved = np.moveaxis(importance, axis, -1)
    members = moved.reshape(-1, group)
    order = np.argsort(members, axis=1, kind="stable")  # of equals the earlier ones come first
    found = np.zeros(members.shape, np.bool_)
    np.put_along_axis(found, order[:, group - kept :], True, axis=1)  # its signature
    return np.moveaxis(found.reshape(moved.shape), -1, axis)


def _importance(weight: Array, kind: str) -> Array:
    values = np.abs(weight.astype(np.float32))
    if kind == "abs":
        return values
    norm = np.sqrt(np.sum(np.square(values), dtype=np.float64)).astype(np.float32)
    return values / np.maximum(norm, np.finfo(np.float32).tiny)


def _dropped(flat: Array, threshold: float, count: int) -> NDArray[np.bool_]:
    """Return the ``count`` smallest as bools: all below the threshold, then the first of its equals."""
    dropped = flat < threshold
    missing = count - int(np.count_nonzero(dropped))
    dropped[np.flatnonzero(flat == threshold)[:missing]] = True
    return dropped
