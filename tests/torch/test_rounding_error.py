# SPDX-License-Identifier: Apache-2.0
"""Ranges with the least rounding error, against a dense search in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nncf.algorithms.quantization import formula
from nncf.algorithms.quantization.ranges import rounding_grid
from nncf.algorithms.quantization.scheme import Scheme
from nncf.torch.rounding_error import least_error

BITS = (2, 3, 4, 6)


def laplace(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(0, 1, shape).astype(np.float32)


def found(rows: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends for every row."""
    tensor = torch.from_numpy(rows)
    low, high = least_error(tensor, rounding_grid(scheme), tensor.amin(1), tensor.amax(1))
    return low.numpy(), high.numpy()


def error(rows: np.ndarray, grid: formula.Grid) -> float:
    return float(np.square(formula.quantize(rows, grid) - rows).sum())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_symmetric_ranges_are_as_good_as_a_dense_search(bits: int, signed: bool) -> None:
    """Each row's scale comes within a percent of the least error of 2,000 scales."""
    scheme = Scheme(bits=bits)
    rows = laplace(3, 4000) * [[0.01], [1], [30]]
    rows = rows if signed else np.abs(rows)
    low, high = found(rows.astype(np.float32), scheme)
    assert (low < 0).all() == signed
    for row, end in zip(rows, high, strict=True):
        ours = error(row, formula.symmetric_grid(scheme, end, signed=signed))
        scales = np.linspace(0.001, 1, 2000) * np.abs(row).max()
        best = min(error(row, formula.symmetric_grid(scheme, s, signed=signed)) for s in scales)
        assert ours <= 1.01 * best
        assert end < np.abs(row).max()


@pytest.mark.parametrize("bits", BITS)
def test_asymmetric_ranges_are_as_good_as_a_dense_search(bits: int) -> None:
    """Both ends move by themselves, and come near the least error of 2,500 pairs."""
    scheme = Scheme(bits=bits, mode="asymmetric")
    random = np.random.default_rng(1)
    rows = np.concatenate([random.uniform(-1, 0, 2000), random.exponential(1, 2000)])
    rows = rows.astype(np.float32)[None]
    low, high = found(rows, scheme)
    ours = error(rows, formula.asymmetric_grid(scheme, low[0], high[0] - low[0]))
    shares = np.linspace(0.02, 1, 50)
    pairs = [(rows.min() * a, rows.max() * b) for a in shares for b in shares]
    best = min(error(rows, formula.asymmetric_grid(scheme, a, b - a)) for a, b in pairs)
    assert ours <= 1.05 * best
    assert high[0] < rows.max()


def test_rows_of_zeros_and_single_values_are_kept() -> None:
    """A dead channel gets an empty range, a constant one a range that holds it exactly."""
    rows = np.zeros((2, 64), np.float32)
    rows[1] = 0.7
    scheme = Scheme(bits=2)
    low, high = found(rows, scheme)
    assert (low == 0).all()
    assert high[0] == 0
    assert error(rows[1], formula.symmetric_grid(scheme, high[1], signed=False)) < 1e-6


def test_one_sign_is_taken_for_all_channels() -> None:
    """A negative value in one channel makes all grids signed; a scheme may forbid that."""
    rows = np.abs(laplace(2, 500))
    rows[1, 0] = -0.1
    low, _ = found(rows, Scheme(bits=3))
    assert (low < 0).all()
    low, _ = found(rows, Scheme(bits=3, signed=False))
    assert (low == 0).all()
