# SPDX-License-Identifier: Apache-2.0
"""The reference mathematics against numbers worked out by hand or published with the format."""

from __future__ import annotations

import numpy as np
import pytest

from nncf.algorithms.quantization.formula import (
    asymmetric_grid,
    gradients,
    quantize,
    symmetric_grid,
)
from nncf.algorithms.quantization.scheme import Scheme

X = np.array([-1.2, -0.5, -0.003, 0.0, 0.26, 0.5, 0.99, 1.7])

SYMMETRIC = [  # scheme, signed, levels, outputs, gradient of the scale
    (
        Scheme(),
        True,
        (-128, 127),
        [-1.007874, -0.503937, 0.0, 0.0, 0.2598425, 0.503937, 0.992126, 1.0],
        -0.00539950594,
    ),
    (
        Scheme(narrow_range=True),
        True,
        (-127, 127),
        [-1.0, -0.503937, 0.0, 0.0, 0.2598425, 0.503937, 0.992126, 1.0],
        0.00248425197,
    ),
    (
        Scheme(half_range=True),
        True,
        (-64, 63),
        [-1.015873, -0.5079365, 0.0, 0.0, 0.2539683, 0.5079365, 0.984127, 1.0],
        -0.0202903387,
    ),
    (
        Scheme(),
        False,
        (0, 255),
        [0.0, 0.0, 0.0, 0.0, 0.2588235, 0.5019608, 0.9882353, 1.0],
        0.999019608,
    ),
    (
        Scheme(bits=4),
        True,
        (-8, 7),
        [-1.1428571, -0.5714286, 0.0, 0.0, 0.2857143, 0.5714286, 1.0, 1.0],
        -0.124790476,
    ),
]

ASYMMETRIC = [  # scheme, low, range, tuned low, high, code of zero, outputs, d low, d range
    (
        Scheme(mode="asymmetric"),
        (0.1, 1.0),
        (0.0, 1.1, 0),
        [0.0, 0.0, 0.0, 0.0, 0.2588235, 0.5003922, 0.9921569, 1.1],
        (4.0, 1.00124777),
    ),
    (
        Scheme(mode="asymmetric"),
        (-1.0, 0.5),
        (-1.0, 0.0, 255),
        [-1.0, -0.5019608, -0.0039216, 0.0, 0.0, 0.0, 0.0, 0.0],
        (5.0, 3.99711765),
    ),
    (
        Scheme(bits=4, mode="asymmetric"),
        (-0.3, 1.0),
        # nearest code of zero is 4 (0.3 · 15 = 4.5, a tie to even): the lower bound stays
        (-0.3, 0.825, 4),
        [-0.3, -0.3, 0.0, 0.0, 0.225, 0.525, 0.825, 0.825],
        None,
    ),
    (
        Scheme(bits=2, mode="asymmetric"),
        (-0.5, 1.0),
        (-1.0, 0.5, 2),  # 1.5, a tie to even
        [-1.0, -0.5, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5],
        (3.0, 2.162),
    ),
    (
        Scheme(mode="asymmetric"),
        (-0.3, 1.0),
        (-0.3, 0.3 / 76 * 179, 76),  # 76.5, a tie to even
        None,
        None,
    ),
]


@pytest.mark.parametrize(("scheme", "signed", "levels", "outputs", "d_scale"), SYMMETRIC)
def test_symmetric_golden_numbers(scheme, signed, levels, outputs, d_scale):
    """Symmetric grids, outputs and gradients have the published values."""
    grid = symmetric_grid(scheme, [1.0], signed=signed)
    assert (grid.level_low, grid.level_high) == levels
    np.testing.assert_allclose(quantize(X, grid), outputs, atol=5e-8)
    found = gradients(np.ones_like(X), X, grid, symmetric=True)
    inside = [0, signed, signed, 1, 1, 1, 1, 0]
    np.testing.assert_array_equal(found.x, inside)
    np.testing.assert_allclose(found.span, [d_scale], rtol=2e-9)


@pytest.mark.parametrize(("scheme", "given", "tuned", "outputs", "derivatives"), ASYMMETRIC)
def test_asymmetric_golden_numbers(scheme, given, tuned, outputs, derivatives):
    """Asymmetric ranges are moved to contain zero exactly, at the code nearest to it."""
    grid = asymmetric_grid(scheme, *given)
    np.testing.assert_allclose([float(grid.low), float(grid.high)], tuned[:2], atol=1e-12)
    assert float(grid.zero_point) == tuned[2]
    if outputs is not None:
        np.testing.assert_allclose(quantize(X, grid), outputs, atol=5e-8)
    if derivatives is not None:
        found = gradients(np.ones_like(X), X, grid, symmetric=False)
        np.testing.assert_allclose([found.low, found.span], derivatives, rtol=2e-9)


def test_ties_go_to_the_even_code():
    """Values half-way between two codes go to the even one."""
    grid = symmetric_grid(Scheme(bits=4), [7.0], signed=True)
    np.testing.assert_array_equal(
        quantize([0.5, 1.5, 2.5, -0.5, -1.5], grid), [0.0, 2.0, 2.0, 0.0, -2.0]
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("low", [-1.0, -0.7, -0.001, 0.0, 0.4, -3.0])
def test_zero_is_a_point_of_every_asymmetric_grid(bits, low):
    """Whatever the range, zero is one of the grid's points and the grid has 2^bits points."""
    points = asymmetric_grid(Scheme(bits=bits, mode="asymmetric"), low, 1.0).points()
    assert len(points) == 2**bits
    assert 0.0 in points
    assert np.allclose(np.diff(points), points[1] - points[0])


def test_per_channel_gradients_are_summed_per_channel():
    """The gradient of a per-channel scale is that of each channel on its own."""
    x = np.stack([X, 2 * X, X - 0.2])
    whole = symmetric_grid(Scheme(), [[1.0], [0.5], [2.0]], signed=True)
    found = gradients(np.ones_like(x), x, whole, symmetric=True).span
    for row, scale, part in zip(x, (1.0, 0.5, 2.0), found, strict=True):
        alone = symmetric_grid(Scheme(), [scale], signed=True)
        np.testing.assert_allclose(gradients(np.ones(8), row, alone, symmetric=True).span, part)
