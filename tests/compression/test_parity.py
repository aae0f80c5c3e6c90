# SPDX-License-Identifier: Apache-2.0
"""Comparisons of a trained model and its deployed file."""

from __future__ import annotations

import numpy as np
import pytest

from nncf.compression.parity import Comparison, ParityReport, Tolerance, compare, compare_levels
from nncf.errors import ParityError

ONES = np.ones((2, 3))


def test_differences_are_relative_to_the_trained_values() -> None:
    """Absolute, relative and root mean square differences follow their definitions."""
    item = compare("y", np.array([[3.0, -4.0]]), np.array([[3.0, -3.0]]))
    assert (item.absolute, item.relative) == (1.0, 0.25)
    assert item.deviation == pytest.approx(np.sqrt(0.5) / np.sqrt(12.5))


def test_top_class_agreement_counts_rows() -> None:
    """Agreement is the part of the rows with the largest element at the same place."""
    item = compare("y", np.array([[1.0, 2], [2, 1]]), np.array([[1.0, 2], [1, 2]]))
    assert item.agreement == 0.5
    assert compare("y", np.ones((2, 3, 4)), np.ones((2, 3, 4))).agreement is None


@pytest.mark.parametrize(
    "deployed", [np.ones((3, 2)), np.full((2, 3), np.nan), np.full((2, 3), np.inf)]
)
def test_wrong_shapes_and_nan_never_pass(deployed: np.ndarray) -> None:
    """Another shape, NaN and infinity lie outside every tolerance."""
    wide = Tolerance(levels=100, flips=1.0, local=1e9, output=1e9)
    assert not compare("y", ONES, deployed).ok(wide, local=False)
    assert not compare("y", ONES, deployed).ok(wide, local=True)


def test_equal_infinities_are_equal() -> None:
    """A mask of minus infinity that both models have is no difference."""
    mask = np.array([-np.inf, 0.0, 2.0])
    assert compare("mask", mask, mask.copy()).absolute == 0


@pytest.mark.parametrize(("moved", "ok"), [(0, True), (1, True), (2, False)])
def test_one_level_is_a_rounding_flip(moved: int, ok: bool) -> None:
    """A quantizer may be one level off, at few elements, and not two."""
    trained = np.zeros((10, 10), np.int64)
    deployed = trained.copy()
    deployed[0, 0] = moved
    item = compare_levels("q", trained, deployed, scale=np.array(0.1))
    assert item.ok(Tolerance(), local=True) is ok
    assert item.absolute == pytest.approx(0.1 * moved)


def test_many_flips_are_no_rounding() -> None:
    """One level off everywhere is a wrong operation."""
    codes = np.zeros((10, 10), np.int64)
    item = compare_levels("q", codes, codes + 1, scale=np.array(0.1))
    assert not item.ok(Tolerance(), local=True)


@pytest.mark.parametrize(("flipped", "ok"), [(8, True), (9, False)])
def test_a_few_flips_of_a_small_tensor_pass(flipped: int, ok: bool) -> None:
    """Up to eight elements may flip, however large a part of a small tensor they are."""
    codes = np.zeros(20, np.int64)
    item = compare_levels("q", codes, codes + (np.arange(20) < flipped), scale=np.array(0.1))
    assert item.ok(Tolerance(), local=True) is ok


def test_first_diverging_operation_is_named() -> None:
    """The error names the first layer beyond tolerance, not the later ones or the output."""
    codes = np.zeros((4, 4), np.int64)
    layers = tuple(
        compare_levels(f"layer{i}", codes, codes + shift, scale=np.array(1.0))
        for i, shift in enumerate([0, 9, 9])
    )
    report = ParityReport("a runtime", (compare("y", ONES, -ONES),), layers)
    assert not report.ok
    with pytest.raises(ParityError, match=r"first operation that differs is layer1: 9 levels"):
        report.check("model.onnx")
    assert "DIVERGES at layer1" in str(report)


def test_report_prints_every_comparison() -> None:
    """The table has a row for each output and layer and says that all is well."""
    layer = Comparison("conv1", 0.1, 0.01, 0.001, levels=1, flips=0.001)
    text = str(ParityReport("a runtime", (compare("y", ONES, ONES),), (layer,)))
    assert all(word in text for word in ("a runtime", "conv1", "100.00%", "equal within"))
