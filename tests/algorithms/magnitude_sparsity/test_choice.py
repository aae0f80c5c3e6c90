# SPDX-License-Identifier: Apache-2.0
"""Which weights are dropped, compared with sorting them all in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nncf.algorithms.magnitude_sparsity.mask import MagnitudeMask
from nncf.algorithms.magnitude_sparsity.torch import MagnitudeWeightMask, kept_by_pattern


def choose(weights, level, importance="abs", pattern=None, axis=1):
    """Return ``(kept by layer as arrays, threshold)`` of new masks."""
    tensors = [torch.as_tensor(weight) for weight in weights]
    masks = [MagnitudeWeightMask(MagnitudeMask(pattern, axis), tuple(t.shape)) for t in tensors]
    threshold = masks[0].choose(masks, tensors, level, importance=importance)
    return [mask.kept().numpy() for mask in masks], threshold


def reference(weights, level, importance="abs"):
    """Return what a stable sort of all importances keeps."""
    values = [np.abs(np.asarray(weight, dtype=np.float32)) for weight in weights]
    if importance == "normed_abs":
        values = [v / np.float32(np.linalg.norm(v)) for v in values]
    flat = np.concatenate([v.ravel() for v in values])
    kept = np.ones(flat.size, dtype=bool)
    count = int(np.floor(flat.size * level + 1e-6))
    kept[np.argsort(flat, kind="stable")[:count]] = False
    ends = np.cumsum([v.size for v in values])[:-1]
    return [part.reshape(v.shape) for part, v in zip(np.split(kept, ends), values, strict=True)]


@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=30), min_size=1, max_size=4),
    st.floats(0, 0.999),
)
@settings(max_examples=200, deadline=None)
def test_exactly_the_smallest_go_and_of_equals_the_first(layers, level):
    """Whatever the ties, ⌊N · level⌋ weights go: the ones that a stable sort puts first."""
    weights = [np.array(layer, dtype=np.float32) for layer in layers]
    kept, threshold = choose(weights, level)
    expected = reference(weights, level)
    assert all(np.array_equal(one, other) for one, other in zip(kept, expected, strict=True))
    gone = [abs(w[~k]) for w, k in zip(weights, kept, strict=True)]
    assert threshold == max((float(g.max()) for g in gone if g.size), default=0.0)


@pytest.mark.parametrize("importance", ["abs", "normed_abs"])
def test_importances_compare_across_layers(importance):
    """With ``abs`` a layer of small scale goes first, with ``normed_abs`` all scales are equal."""
    generator = np.random.default_rng(0)
    weights = [
        scale * generator.standard_normal((20, 30)).astype(np.float32) for scale in (0.01, 1, 5)
    ]
    kept, _ = choose(weights, 0.5, importance)
    expected = reference(weights, 0.5, importance)
    assert all(np.array_equal(one, other) for one, other in zip(kept, expected, strict=True))
    shares = [float((~k).mean()) for k in kept]
    if importance == "abs":
        assert shares[0] > 0.9 > shares[2]
    else:
        assert shares == pytest.approx([0.5] * 3, abs=0.05)


def test_level_zero_drops_nothing():
    """At level 0 even the smallest weight stays, zeros too."""
    kept, threshold = choose([np.array([0.0, -1e-9, 2.0], dtype=np.float32)], 0.0)
    assert kept[0].all()
    assert threshold == 0.0


@pytest.mark.parametrize(("level", "count"), [(0.29, 29), (0.57, 57), (0.58, 58), (0.999, 99)])
def test_levels_in_decimals_are_counted_as_written(level, count):
    """Of 100 weights the level 0.29 drops 29, though 100 · 0.29 is less in binary numbers."""
    kept, _ = choose([np.arange(1, 101, dtype=np.float32)], level)
    assert int((~kept[0]).sum()) == count


def test_layers_of_zeros_have_no_importance():
    """A layer of zeros, whose norm is zero, goes first and makes no NaN."""
    weights = [np.ones(4, dtype=np.float32), np.zeros(4, dtype=np.float32)]
    kept, threshold = choose(weights, 0.5, "normed_abs")
    assert kept[0].all()
    assert not kept[1].any()
    assert threshold == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_memory_formats(dtype):
    """Half precision and channels-last weights are chosen like others."""
    weight = torch.randn(6, 4, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    kept, _ = choose([weight], 0.4)
    expected = reference([weight.float().numpy()], 0.4)
    assert np.array_equal(kept[0], expected[0])


@pytest.mark.parametrize(
    ("shape", "axis", "pattern"),
    [
        ((5, 8), 1, (2, 4)),
        ((6, 8, 3, 3), 1, (4, 8)),
        ((12, 5, 2), 0, (1, 3)),
        ((3, 8, 6), 2, (1, 2)),
    ],
)
def test_pattern_keeps_the_largest_of_each_group(shape, axis, pattern):
    """Of each M neighbours along the axis the N largest stay, for every place of a kernel."""
    importance = np.random.default_rng(1).random(shape).astype(np.float32)
    kept, group = pattern
    found = kept_by_pattern(torch.from_numpy(importance), kept, group, axis=axis).numpy()
    moved, values = np.moveaxis(found, axis, -1), np.moveaxis(importance, axis, -1)
    moved, values = moved.reshape(-1, group), values.reshape(-1, group)
    assert (moved.sum(1) == kept).all()
    worst_kept = np.where(moved, values, np.inf).min(1)
    best_dropped = np.where(moved, -np.inf, values).max(1)
    assert (worst_kept > best_dropped).all()


def test_pattern_with_equals_keeps_exactly_n():
    """Equal weights in a group: the first go, never more nor fewer than M − N."""
    found = kept_by_pattern(torch.ones(3, 8), 2, 4, axis=1)
    assert found.tolist() == [[False, False, True, True] * 2] * 3


def test_a_level_below_the_pattern_drops_the_smallest_that_it_allows():
    """On the way to 2:4 the dropped weights are the smallest of those that 2:4 drops."""
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    (half,), _ = choose([weight], 0.25, pattern="2:4")
    (full,), _ = choose([weight], 0.5, pattern="2:4")
    assert (~half).sum() == weight.numel() // 4
    assert not (half < full).any()  # nothing goes on the way that stays at the end
    going = weight.abs().numpy()[~full]
    assert np.array_equal(np.sort(going)[: (~half).sum()], np.sort(weight.abs().numpy()[~half]))
    assert (full.reshape(-1, 4).sum(1) == 2).all()
