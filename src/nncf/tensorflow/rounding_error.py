# SPDX-License-Identifier: Apache-2.0
"""The range with the least rounding error: with few bits, cutting outliers off pays.

The search of ``nncf.torch.rounding_error`` in NumPy, where its sources are named: shares of the
whole range are tried, first four per octave, then sixteen around the best of each channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.calibration import RoundingGrid

Array = NDArray[Any]

VALUES = 2**20
"""How many values of a tensor are looked at; more do not change the result."""

_OCTAVES, _COARSE, _FINE = 10, 4, 16
_ROUNDS = 2  # of both ends in turn
_SMALLEST = 1e-30  # of steps: rows of zeros have no error at any

Codes = tuple[Array, Array, Array]  # step, lowest and highest code, one per row


def least_error(
    rows: Array, grid: RoundingGrid, lowest: Array, highest: Array
) -> tuple[Array, Array]:
    """Return both ends of the range for every row of a matrix [channels, n].

    ``lowest`` and ``highest`` are the extremes of the rows. Symmetric grids are signed for all
    rows if any value is negative.
    """
    rows = rows.astype(np.float32)
    low, high = (np.asarray(end, np.float32) for end in (lowest, highest))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    negative = bool((low < 0).any())
    levels = grid.signed if negative or grid.unsigned is None else grid.unsigned
    if levels is None:
        assert grid.unsigned is not None  # one of the two is there
        return _both_ends(rows, low, high, grid.unsigned[1])
    reach = np.maximum(high, -low) if levels[0] < 0 else high
    high = _magnitude(rows, reach, levels)
    return (-high if levels[0] < 0 else np.zeros_like(high)), high


def _magnitude(rows: Array, reach: Array, levels: tuple[int, int]) -> Array:
    """Return the value of the highest code of a grid that contains zero, up to ``reach``."""
    ends = [np.full_like(reach, level) for level in levels]
    return reach * _best_share(rows, lambda share: (reach * share / levels[1], ends[0], ends[1]))


def _both_ends(rows: Array, low: Array, high: Array, intervals: int) -> tuple[Array, Array]:
    """Return the ends of a grid with ``intervals`` steps, moved one after the other."""

    def codes(low: Array, high: Array) -> Codes:
        step = np.maximum((high - low) / intervals, np.float32(_SMALLEST))
        zero = np.round(-low / step)
        return step, -zero, intervals - zero

    best = _best_share(rows, lambda share: codes(low * share, high * share))
    start, end = low * best, high * best
    for _ in range(_ROUNDS):
        end = high * _best_share(rows, lambda share, low=start: codes(low, high * share))
        start = low * _best_share(rows, lambda share, high=end: codes(low * share, high))
    return start, end


def _best_share(rows: Array, codes: Callable[[Array], Codes]) -> Array:
    """Return for every row the share in (0, 1] whose grid has the least squared error."""
    coarse = [2.0 ** (-place / _COARSE) for place in range(_OCTAVES * _COARSE + 1)]
    best = _best(rows, codes, [np.full(len(rows), share, np.float32) for share in coarse])
    around = range(1 - _FINE // _COARSE, _FINE // _COARSE)
    near = [np.minimum(best * np.float32(2.0 ** (p / _FINE)), 1) for p in around]
    return _best(rows, codes, near)


def _best(rows: Array, codes: Callable[[Array], Codes], shares: list[Array]) -> Array:
    errors = np.stack([_squared_error(rows, codes(share)) for share in shares])
    return np.stack(shares)[errors.argmin(0), np.arange(len(rows))]


def _squared_error(rows: Array, codes: Codes) -> Array:
    step, low, high = (part[:, None] for part in codes)
    step = np.maximum(step, np.float32(_SMALLEST))
    rounded = np.clip(np.round(rows / step), low, high) * step
    return np.square(rounded - rows).sum(1)
