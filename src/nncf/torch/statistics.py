# SPDX-License-Identifier: Apache-2.0
"""Collectors: they watch tensors pass, batch after batch, and tell the ends of their range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nncf.compression.calibration import Calibration
from nncf.torch.rounding_error import VALUES, least_error

MEDIAN_DEVIATIONS_PER_SIGMA = 1.4826230
"""The standard deviation of a normal distribution whose median absolute deviation is 1."""

_MANY_CALLS = 64
_FEWEST_COLUMNS = 1024


class RangeCollector:
    """The observer of one CompressionOp: a range from all tensors that pass it.

    An op that stands at several points is called several times per batch. Each call has
    statistics of its own (``Ends``), and the result is the lowest and the highest of their
    ends: an average over unlike tensors would cut off the larger one.

    ``start(samples)`` announces a batch. ``finite`` turns False when NaN or infinity passed.
    ``capacity`` is the number of values that percentiles keep at most, see ``Reservoir``.
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

    def __call__(self, tensor: Tensor) -> None:
        """Take a tensor of the announced batch into account."""
        if tensor.numel() == 0 or self._has_enough():
            return
        index = min(self._call, _MANY_CALLS - 1)
        self._call += 1
        if index == len(self._calls):
            self._calls.append(Ends(self.calibration, self.capacity))
        with torch.no_grad():
            self.finite &= self._calls[index].update(tensor, self._samples)

    def _has_enough(self) -> bool:
        if self.calibration.weight:  # seen in an earlier batch
            return bool(self._calls) and self._call == 0
        return self._samples_before >= self.calibration.samples

    def result(self) -> tuple[Tensor, Tensor] | None:
        """Return ``(lowest, highest)``, or None when no tensor passed.

        Both have shape (1,), or ones but for the channel axis.
        """
        if not self._calls:
            return None
        lows, highs = zip(*(call.result() for call in self._calls), strict=True)
        low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
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
        self.low = Mean() if self.recipe.average_low else Extreme(torch.minimum)
        self.high = Mean() if self.recipe.average_high else Extreme(torch.maximum)
        if self.recipe.grid is not None:
            capacity = min(capacity, VALUES)
        self.values = Reservoir(capacity) if self.recipe.per == "all" else None

    def update(self, tensor: Tensor, samples: int) -> bool:
        """Take one tensor into account; return whether all its values are finite."""
        tensor = _computable(tensor)
        parts = per_sample(tensor, samples) if self.recipe.per == "sample" else tensor[None]
        low, high = (end.cpu() for end in extremes(parts, self.axis, keep=1))
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            return False
        if self.recipe.ends == "extremes":
            self.low.add(*low)
            self.high.add(*(torch.maximum(high, -low) if self.recipe.absolute_high else high))
            return True
        rows = _rows(tensor, self.axis)
        if self.values is not None:
            self.values.add(rows[rows != 0][None] if self._drops_zeros(rows) else rows)
        else:
            batch = Reservoir(self.capacity)
            batch.add(rows)
            low, high = (end[None] for end in percentiles(batch.result(), self.recipe.percentiles))
        self.low.add(*low)
        self.high.add(*high)
        return True

    def _drops_zeros(self, rows: Tensor) -> bool:
        return self.recipe.ends == "three_sigma" and len(rows) == 1

    def result(self) -> tuple[Tensor, Tensor]:
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
        return low.float(), high.float()


class Extreme:
    """Running minimum or maximum."""

    def __init__(self, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.pick = pick
        self.value: Tensor | None = None

    def add(self, *values: Tensor) -> None:
        for value in values:
            self.value = value if self.value is None else self.pick(self.value, value)

    def result(self) -> Tensor:
        assert self.value is not None  # a result is asked for after the first tensor
        return self.value


class Mean:
    """Running mean, in double precision."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, *values: Tensor) -> None:
        total = torch.stack(values).double().sum(0)
        self.total = total if self.total is None else self.total + total
        self.count += len(values)

    def result(self) -> Tensor:
        assert self.total is not None  # a result is asked for after the first tensor
        return self.total / self.count


class Reservoir:
    """All columns of matrices of shape (channels, n), or a fair random part of them.

    Up to ``capacity`` values everything is kept and results are exact. Beyond, half of what is
    kept is thrown away and of what follows only that share is taken, so every column has the
    same chance to stay. With four million values the rank of the 99.9th percentile has a
    standard deviation of at most 0.0016 percent. The choice has a generator of its own, so
    results repeat and no other random stream is disturbed.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.parts: list[Tensor] = []
        self.stored = 0
        self.share = 1.0
        self.generator = torch.Generator().manual_seed(0)

    def add(self, columns: Tensor) -> None:
        """Add a matrix of shape (channels, n)."""
        capacity = max(self.capacity, _FEWEST_COLUMNS * len(columns))
        while self.stored + columns.numel() * self.share > capacity:
            self._halve()
        kept = columns.clone() if self.share == 1.0 else thin(columns, self.share, self.generator)
        self.parts.append(kept)
        self.stored += kept.numel()

    def _halve(self) -> None:
        self.share /= 2
        if self.parts:
            self.parts = [thin(self.result(), 0.5, self.generator)]
            self.stored = self.parts[0].numel()

    def result(self) -> Tensor:
        """Return a matrix of shape (channels, what was kept)."""
        return torch.cat(self.parts, 1)


def thin(columns: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return a random ``share`` of the columns: one of every 1 / share neighbours.

    Which one is random, because with a fixed stride it would be the same pixel of each image.
    """
    count = columns.shape[1]
    dice = torch.rand((), generator=generator, dtype=torch.double)
    wanted = min(count, int(count * share + dice))
    places = torch.rand(wanted, generator=generator, dtype=torch.double)
    places = (places + torch.arange(wanted)) * (count / max(wanted, 1))
    return columns.index_select(1, places.long().clamp_(max=count - 1).to(columns.device))


# ------------------------------------------------------------------------- tensors to numbers


def extremes(tensor: Tensor, axis: int | None, *, keep: int = 0) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum over all axes but the first ``keep`` and ``axis``.

    ``axis`` counts from the end (-1 is the last). Both have the shape of the kept axes and one
    more, of length 1 without ``axis``. NaN anywhere gives NaN.
    """
    if tensor.ndim == keep:
        tensor = tensor[..., None]
    channel = None if axis is None else tensor.ndim + axis
    dims = [dim for dim in range(keep, tensor.ndim) if dim != channel]
    low, high = (tensor.amin(dims), tensor.amax(dims)) if dims else (tensor, tensor)
    return (low[..., None], high[..., None]) if axis is None else (low, high)


def per_sample(tensor: Tensor, samples: int) -> Tensor:
    """Return a view whose first axis counts the samples of a batch of ``samples``.

    The batch is axis 0; or axis 1 of time-major tensors; or folded into axis 0 with windows,
    attention heads or time steps behind it. A tensor without any of these is one sample.
    """
    if tensor.ndim > 0 and tensor.shape[0] == samples:
        return tensor
    if tensor.ndim > 1 and tensor.shape[1] == samples:
        return tensor.movedim(1, 0)
    if tensor.ndim > 0 and samples > 1 and tensor.shape[0] % samples == 0:
        return tensor.reshape(samples, tensor.shape[0] // samples, *tensor.shape[1:])
    return tensor[None]


def percentiles(rows: Tensor, ranks: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return two percentiles of every row, linear between the two nearest values, as in NumPy."""
    low, high = (_percentile(rows, rank) for rank in ranks)
    return low, high


def _percentile(rows: Tensor, rank: float) -> Tensor:
    place = rank / 100 * (rows.shape[1] - 1)
    below = min(int(place), rows.shape[1] - 1)
    lower = rows.kthvalue(below + 1, dim=1).values.cpu().double()
    if place == below:
        return lower
    upper = rows.kthvalue(below + 2, dim=1).values.cpu().double()
    return lower + (upper - lower) * (place - below)


def three_sigma(rows: Tensor, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Return median ± 3 robust standard deviations of every row, zeros left aside.

    Values of only one sign (by ``lowest`` and ``highest``, the extremes of the rows) give a
    range of that sign: a range below zero would cost the outputs of a ReLU half of the grid.
    """
    zero = rows == 0
    count = (~zero).sum(1)
    median = _median(rows.masked_fill(zero, torch.inf), count)
    deviation = _median((rows - median[:, None]).abs_().masked_fill_(zero, torch.inf), count)
    median, deviation = median.cpu(), deviation.cpu()
    reach = 3 * MEDIAN_DEVIATIONS_PER_SIGMA * deviation
    low, high = median - reach, median + reach
    low = torch.where(lowest >= 0, low.clamp(min=0), low)
    return low, torch.where(highest <= 0, high.clamp(max=0), high)


def _median(rows: Tensor, count: Tensor) -> Tensor:
    """Return the median of the ``count`` smallest values of every row, 0 where there are none."""
    if rows.shape[1] == 0:
        return rows.new_zeros(len(rows))
    middle = torch.stack([(count - 1).clamp(min=0) // 2, count // 2], 1)
    found = rows.sort(1).values.gather(1, middle.clamp(max=rows.shape[1] - 1)).mean(1)
    return torch.where(count > 0, found, torch.zeros_like(found))


def _rows(tensor: Tensor, axis: int | None) -> Tensor:
    """Return the tensor as a matrix with one row per channel (one row without ``axis``)."""
    if axis is None:
        return tensor.reshape(1, -1)
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _computable(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
