# SPDX-License-Identifier: Apache-2.0
"""Tests of the texts that say why a quantizer is where it is."""

from __future__ import annotations

from nncf.algorithms.quantization.demands import Cause


def test_far_cause_is_named() -> None:
    """A demand that moved past more operations than the text looks at still names who asked."""
    cause = Cause("input of convolution conv2d_0")
    for number in range(100):
        cause = Cause(f"relu_{number}", (cause,))
    assert str(cause).startswith("input of convolution conv2d_0, moved up through relu_99, ")


def test_shared_branches_are_named_once() -> None:
    """Two demands that meet are both named, what both passed only once."""
    first, second = Cause("input of convolution a"), Cause("input of linear b")
    merged = Cause("max_pool_0", (Cause(branches=(first, second, first)),))
    expected = "input of convolution a and input of linear b, moved up through max_pool_0"
    assert str(merged) == expected
