# SPDX-License-Identifier: Apache-2.0
"""The quantizer's mathematics in NumPy, float64: what the tests of every backend compare with.

A quantizer maps x to the nearest point of a grid with ``levels`` points that contains zero::

    rate = (levels - 1) / span
    y    = clamp(x, low, low + span)
    out  = round((y - low) * rate - zero) / rate,    zero = round(-low * rate)

``round`` takes ties to the even neighbour. Symmetric quantizers learn ``scale``, their upper
bound: ``low = scale · level_low / level_high``. Asymmetric ones learn ``input_low`` and
``input_range``, moved by ``tune_range`` so that zero is a grid point. The backward pass is a
straight-through estimator: rounding counts as the identity for x, and its error as the
gradient of the span (Jain et al., "Trained Quantization Thresholds", arXiv:1903.08066).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nncf.algorithms.quantization.scheme import Scheme

Array = NDArray[np.float64]
EPSILON = 1e-16


@dataclass(frozen=True)
class Grid:
    """The points of a quantizer: codes ``level_low…level_high``, of value (code − zero) · step.

    ``step``, ``zero_point``, ``low`` and ``high`` broadcast against the tensor.
    """

    step: Array
    zero_point: Array
    level_low: int
    level_high: int
    low: Array
    high: Array
    zero: bool = True
    """Whether zero is on the grid; one signed bit has only the two ends."""

    @property
    def intervals(self) -> int:
        return self.level_high - self.level_low

    def points(self) -> Array:
        """Return the values of all codes, in a new last dimension."""
        codes = np.arange(self.level_low, self.level_high + 1, dtype=np.float64)
        codes = codes if self.zero else codes[codes != 0]
        return (codes - self.zero_point[..., None]) * self.step[..., None]


def symmetric_grid(scheme: Scheme, scale: ArrayLike, *, signed: bool) -> Grid:
    """Return the grid whose highest point is |scale|; code 0 is zero."""
    level_low, level_high = scheme.levels(signed)
    epsilon = 0.0 if scheme.logarithm_scale else EPSILON
    high = np.abs(np.asarray(scale, np.float64)) + epsilon
    step = high / level_high
    zero = not (signed and scheme.bits == 1)
    return Grid(step, np.zeros_like(step), level_low, level_high, step * level_low, high, zero)


def asymmetric_grid(scheme: Scheme, input_low: ArrayLike, input_range: ArrayLike) -> Grid:
    """Return the grid over [input_low, input_low + |input_range|], tuned to contain zero."""
    level_low, level_high = scheme.levels(False)
    epsilon = 0.0 if scheme.logarithm_scale else EPSILON
    span = np.abs(np.asarray(input_range, np.float64)) + epsilon
    low, high, zero = tune_range(np.asarray(input_low, np.float64), span, level_high - level_low)
    step = (high - low) / (level_high - level_low)
    return Grid(step, zero + level_low, level_low, level_high, low, high)


def tune_range(low: Array, span: Array, intervals: int) -> tuple[Array, Array, Array]:
    """Return ``low``, ``high`` and the code of zero, moved as little as keeps zero exact.

    The range is first widened to include zero. The code of zero is the one nearest to where
    zero lies; then the bound that has to move outwards does, and the other stays.
    """
    high = np.maximum(low + span, 0.0)
    low = np.minimum(low, 0.0)
    zero = np.round(-low * (intervals / (high - low)))
    if_high_stays = high / np.maximum(intervals - zero, 1.0) * (zero < intervals)
    if_low_stays = -low / np.maximum(zero, 1.0) * (zero > 0)
    step = np.maximum(if_high_stays, if_low_stays)
    return -zero * step, (intervals - zero) * step, zero


def quantize(x: ArrayLike, grid: Grid) -> Array:
    """Return x on the grid; without a zero on it, what is not above zero goes to the low end."""
    if not grid.zero:
        return np.where(np.asarray(x) > 0, grid.high, grid.low)
    codes = np.round(np.asarray(x, np.float64) * (grid.intervals / (grid.high - grid.low)))
    low, high = grid.level_low - grid.zero_point, grid.level_high - grid.zero_point
    return np.clip(codes, low, high) * grid.step + 0.0


@dataclass(frozen=True)
class Gradients:
    """Gradients of x, of scale or input_range, and of input_low (zero when symmetric)."""

    x: Array
    span: Array
    low: Array


def gradients(gradient: ArrayLike, x: ArrayLike, grid: Grid, *, symmetric: bool) -> Gradients:
    """Return what the backward pass gives for ``gradient`` at x.

    The parameters' gradients are summed to the shape of ``grid.step``. Inside the range the
    span's is (out − x) / span; above it 1; below it level_low / level_high when symmetric, as
    the lower bound then moves with the scale, else 0.
    """
    gradient, x = np.asarray(gradient, np.float64), np.asarray(x, np.float64)
    above, below = x > grid.high, x < grid.low
    inside = ~(above | below)
    ratio = grid.level_low / grid.level_high if symmetric else 0.0
    span = np.where(inside, (quantize(x, grid) - x) / (grid.step * grid.intervals), 0.0)
    span = span + above + below * ratio
    outside = gradient * (above | below) * (not symmetric)
    shape = grid.step.shape
    return Gradients(gradient * inside, _sum_to(gradient * span, shape), _sum_to(outside, shape))


def _sum_to(values: Array, shape: tuple[int, ...]) -> Array:
    """Sum over all dimensions in which ``shape`` has length one."""
    if len(shape) != values.ndim:
        return values.sum().reshape(shape)
    dims = tuple(dim for dim, length in enumerate(shape) if length == 1)
    return values.sum(axis=dims, keepdims=True)
