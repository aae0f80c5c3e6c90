# SPDX-License-Identifier: Apache-2.0
"""The formulas of binarization in numpy: the truth that backends are tested against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TOP_SHARE = 0.001
"""Share of the values of the first data that lie at or above the scale taken from it."""


def binarize_weight(weight: Array, *, per_channel: bool) -> Array:
    """Return ``sign(w) · mean|w|``, the mean over each index of axis 0 or over all.

    The sign of zero is −1.
    """
    axes = tuple(range(1, weight.ndim)) if per_channel else None
    scale = np.abs(weight).mean(axis=axes, keepdims=True)
    return np.where(weight > 0, scale, -scale)


def binarize_activation(x: Array, *, scale: float, threshold: Array) -> Array:
    """Return ``S · [x > T · S]``; ``threshold`` broadcasts over x."""
    return np.where(x > threshold * scale, scale, 0.0)


def activation_gradients(
    gradient: Array, x: Array, *, scale: float, threshold: Array
) -> tuple[Array, float, Array]:
    """Return the gradients of x, of S and (as the shape of x, to be summed) of T.

    ``dx = g · [0 ≤ x ≤ S]``, ``dS = Σ g · ([x ≤ S] · (out − x) / S + [x > S])``,
    ``dT = −Σ g · [0 < x < S]``.
    """
    out = binarize_activation(x, scale=scale, threshold=threshold)
    dx = gradient * ((x >= 0) & (x <= scale))
    part = np.where(x <= scale, (out - x) / scale, 1.0)
    dt = -gradient * ((x > 0) & (x < scale))
    return dx, float((gradient * part).sum()), dt


def first_scale(values: Array) -> float:
    """Return the scale that the first data gives: its 0.1 % largest values lie at or above it."""
    count = max(1, math.floor(TOP_SHARE * values.size + 0.5))
    return float(np.sort(values, axis=None)[-count])
