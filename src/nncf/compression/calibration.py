# SPDX-License-Identifier: Apache-2.0
"""What a CompressionOp wants to know about the values at its points before training starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """How values become the two ends of a range.

    The ends are computed over each ``per`` ("all": every value seen): the smallest and the
    largest value, two percentiles, median ± three robust standard deviations, or where rounding
    to ``grid`` has the least squared error. The ends of several samples or batches are averaged,
    or else the lowest and the highest is taken. With ``absolute_high`` the upper extreme is that
    of |x|.
    """

    ends: Literal["extremes", "percentiles", "three_sigma", "least_error"] = "extremes"
    per: Literal["sample", "batch", "all"] = "batch"
    average_low: bool = False
    average_high: bool = False
    absolute_high: bool = False
    percentiles: tuple[float, float] = (0.1, 99.9)
    grid: RoundingGrid | None = None


@dataclass(frozen=True)
class RoundingGrid:
    """The integer grid whose error a range is to make small.

    ``unsigned`` and ``signed`` are the ends of the grid for values of one sign and of both; None
    where the grid has no such form. Without a ``signed`` form both ends of the range move.
    ``zero`` False: the signed form has its two ends only.
    """

    unsigned: tuple[int, int] | None
    signed: tuple[int, int] | None
    zero: bool = True


@dataclass(frozen=True)
class Calibration:
    """One op's wish for a range: by which recipe, from how many samples.

    ``samples`` 0 means that no range is wanted. ``channel_axis`` asks for one range per index
    of that axis of a tensor of rank ``rank`` (tensors without the leading batch axis are
    understood). ``weight``: the values do not depend on the data, the first batch tells all.
    ``required``: the user asked for it, so missing data is an error.
    """

    recipe: Recipe = Recipe()
    samples: int = 256
    channel_axis: int | None = None
    rank: int = 0
    weight: bool = False
    required: bool = False
