# SPDX-License-Identifier: Apache-2.0
"""Collectors: they watch tensors pass, batch after batch, and tell the ends of their range.

In NumPy, on the values of eager calls; the recipes are those of ``nncf.compression.calibration``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.calibration import Calibration
from nncf.tensorflow.rounding_error import VALUES, least_error

Array = NDArray[Any]

MEDIAN_DEVIATIONS_PER_SIGMA = 1.4826230
"""The standard deviation of a normal distribution whose median absolute deviation is 1."""

_MANY_CALLS = 64
_FEWEST_COLUMNS = 1024


class RangeCollector:
    """The observer of one CompressionOp: a range from all tensors that pass it.

    An op that stands at several points is called several times per batch. Each call has
    statistics of its own, and the result is the lowest and the highest of their ends.
    ``start(samples)`` announces a batch. ``finite`` turns False when NaN or infinity passed.
    ``capacity`` is the number of values that percentiles keep at most.
    """

    def __init__(self, calibration: Calibration, *, capacity: int = 2**22) -> None:
        self.calibration = calibration
        self.capacity = capacity
        self.finite = True
        self._calls: list[Ends] = []
        self._call = 0
        self._samples_before = 0
        self._samples = 0

    def start(self, samples: int) -> None:
        """Announce a batch of ``samples`` samples."""
        self._samples_before += self._samples
        self._samples = samples
        self._call = 0

    def __call__(self, tensor: Any) -> None:
        """Take a tensor of the announced batch into account."""
        values = np.asarray(tensor)
        if values.size == 0 or self._has_enough():
            return
        index = min(self._call, _MANY_CALLS - 1)
        self._call += 1
        if index == len(self._calls):
            self._calls.append(Ends(self.calibration, self.capacity))
        self.finite &= self._calls[index].update(values, self._samples)

    def _has_enough(self) -> bool:
        if self.calibration.weight:  # seen in an earlier batch
            return bool(self._calls) and self._call == 0
        return self._samples_before >= self.calibration.samples

    def result(self) -> tuple[Array, Array] | None:
        """Return ``(lowest, highest)``, or None when no tensor passed.

        Both have shape (1,), or ones but for the channel axis.
        """
        if not self._calls:
            return None
        lows, highs = zip(*(call.result() for call in self._calls), strict=True)
        low, high = np.min(lows, 0), np.max(highs, 0)
        axis, rank = self.calibration.channel_axis, self.calibration.rank
        if axis is None:
            return low, high
        shape = [1] * rank
        shape[axis] = -1
        return low.reshape(shape), high.reshape(shape)


class Ends:
    """Running ends of one point's range; vectors with one element per channel."""

    def __init__(self, calibration: Calibration, capacity: int) -> None:
        self.recipe = calibration.recipe
        axis = calibration.channel_axis
        # Counted from the end, so that a tensor without its batch axis has the same one.
        self.axis = None if axis is None else axis - calibration.rank
        self.capacity = capacity
        self.low = Mean() if self.recipe.average_low else Extreme(np.minimum)
        self.high = Mean() if self.recipe.average_high else Extreme(np.maximum)
        if self.recipe.grid is not None:
            capacity = min(capacity, VALUES)
        self.values = Reservoir(capacity) if self.recipe.per == "all" else None

    def update(self, tensor: Array, samples: int) -> bool:
        """Take one tensor into account; return whether all its values are finite."""
        tensor = tensor if tensor.dtype in (np.float32, np.float64) else tensor.astype(np.float32)
        parts = per_sample(tensor, samples) if self.recipe.per == "sample" else tensor[None]
        low, high = extremes(parts, self.axis, keep=1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return False
        if self.recipe.ends == "extremes":
            self.low.add(low)
            self.high.add(np.maximum(high, -low) if self.recipe.absolute_high else high)
            return True
        rows = _rows(tensor, self.axis)
        if self.values is not None:
            self.values.add(rows[rows != 0][None] if self._drops_zeros(rows) else rows)
        else:
            batch = Reservoir(self.capacity)
            batch.add(rows)
            low, high = (end[None] for end in percentiles(batch.result(), self.recipe.percentiles))
        self.low.add(low)
        self.high.add(high)
        return True

    def _drops_zeros(self, rows: Array) -> bool:
        return self.recipe.ends == "three_sigma" and len(rows) == 1

    def result(self) -> tuple[Array, Array]:
        """Return both ends, float32."""
        low, high = self.low.result(), self.high.result()
        if self.values is not None:
            rows = self.values.result()
            if self.recipe.grid is not None:
                low, high = least_error(rows, self.recipe.grid, low, high)
            elif self.recipe.ends == "three_sigma":
                low, high = three_sigma(rows, low, high)
            else:
                low, high = percentiles(rows, self.recipe.percentiles)
        return low.astype(np.float32), high.astype(np.float32)


class Extreme:
    """Running minimum or maximum of rows."""

    def __init__(self, pick: Callable[[Array, Array], Array]) -> None:
        self.pick = pick
        self.value: Array | None = None

    def add(self, rows: Array) -> None:
        for row in rows:
            self.value = row if self.value is None else self.pick(self.value, row)

    def result(self) -> Array:
        assert self.value is not None
        return self.value


class Mean:
    """Running mean of rows, in float64."""

    def __init__(self) -> None:
        self.sum: Any = 0.0
        self.count = 0

    def add(self, rows: Array) -> None:
        self.sum = self.sum + rows.astype(np.float64).sum(0)
        self.count += len(rows)

    def result(self) -> Array:
        return np.asarray(self.sum / self.count)


class Reservoir:
    """Columns of all matrices that were added, thinned at random where they are too many."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.parts: list[Array] = []
        self.stored = 0
        self.share = 1.0
        self.random = np.random.default_rng(0)

    def add(self, columns: Array) -> None:
        """Add a matrix of shape (channels, n)."""
        capacity = max(self.capacity, _FEWEST_COLUMNS * len(columns))
        while self.stored + columns.size * self.share > capacity:
            self._halve()
        kept = columns.copy() if self.share == 1.0 else self._thinned(columns, self.share)
        self.parts.append(kept)
        self.stored += kept.size

    def _halve(self) -> None:
        self.share /= 2
        if self.parts:
            self.parts = [self._thinned(self.result(), 0.5)]
            self.stored = self.parts[0].size

    def _thinned(self, columns: Array, share: float) -> Array:
        """Return a share of the columns, one of every 1 / share neighbours, which is random."""
        count = columns.shape[1]
        wanted = min(count, int(count * share + self.random.random()))
        places = (self.random.random(wanted) + np.arange(wanted)) * (count / max(wanted, 1))
        return columns[:, np.minimum(places.astype(np.int64), count - 1)]

    def result(self) -> Array:
        """Return a matrix of shape (channels, what was kept)."""
        return np.concatenate(self.parts, 1)


# ------------------------------------------------------------------------- tensors to numbers


def extremes(tensor: Array, axis: int | None, *, keep: int = 0) -> tuple[Array, Array]:
    """Return minimum and maximum over all axes but the first ``keep`` and ``axis``.

    ``axis`` counts from the end (-1 is the last). Both have the shape of the kept axes and one
    more, of length 1 without ``axis``.
    """
    channel = None if axis is None else tensor.ndim + axis
    axes = tuple(place for place in range(keep, tensor.ndim) if place != channel)
    low, high = tensor.min(axes), tensor.max(axes)
    return (low[..., None], high[..., None]) if axis is None else (low, high)


def per_sample(tensor: Array, samples: int) -> Array:
    """Return a view whose first axis counts the samples of a batch of ``samples``.

    The batch is axis 0, or folded into axis 0 with windows, attention heads or time steps
    behind it. A tensor without either is one sample.
    """
    if tensor.ndim > 0 and tensor.shape[0] == samples:
        return tensor
    if tensor.ndim > 0 and samples > 1 and tensor.shape[0] % samples == 0:
        return tensor.reshape(samples, tensor.shape[0] // samples, *tensor.shape[1:])
    return tensor[None]


def percentiles(rows: Array, ranks: tuple[float, float]) -> tuple[Array, Array]:
    """Return two percentiles of every row, linear between the two nearest values."""
    low, high = np.percentile(rows.astype(np.float64), ranks, axis=1)
    return low, high


def three_sigma(rows: Array, lowest: Array, highest: Array) -> tuple[Array, Array]:
    """Return median ± 3 robust standard deviations of every row, zeros left aside.

    Values of only one sign (by ``lowest`` and ``highest``, the extremes of the rows) give a
    range of that sign: a range below zero would cost the outputs of a ReLU half of the grid.
    """
    ends = [_three_sigma(row[row != 0]) for row in rows.astype(np.float64)]
    low, high = (np.asarray(end) for end in zip(*ends, strict=True))
    low = np.where(lowest >= 0, np.maximum(low, 0), low)
    return low, np.where(highest <= 0, np.minimum(high, 0), high)


def _three_sigma(row: Array) -> tuple[float, float]:
    if row.size == 0:
        return 0.0, 0.0
    median = float(np.median(row))
    reach = 3 * MEDIAN_DEVIATIONS_PER_SIGMA * float(np.median(np.abs(row - median)))
    return median - reach, median + reach


def _rows(tensor: Array, axis: int | None) -> Array:
    """Return the tensor as a matrix with one row per channel (one row without ``axis``)."""
    if axis is None:
        return tensor.reshape(1, -1)
    moved = np.moveaxis(tensor, axis, 0)
    return moved.reshape(len(moved), math.prod(moved.shape[1:]))
