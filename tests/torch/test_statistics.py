# SPDX-License-Identifier: Apache-2.0
"""Collectors against NumPy."""

from __future__ import annotations

import numpy
import pytest
import torch

from nncf.compression.calibration import Calibration, Recipe
from nncf.torch.statistics import RangeCollector, Reservoir, extremes, per_sample, thin

SYMMETRIC = Recipe("extremes", "sample", False, True, absolute_high=True)
BATCHES = [numpy.random.default_rng(7).normal(0.3, 2, (4, 3, 5, 5)) for _ in range(3)]


def collect(recipe: Recipe, batches: list[numpy.ndarray] = BATCHES, **calibration: object):
    """Return both ends that a collector finds in batches whose axis 0 is the batch."""
    collector = RangeCollector(Calibration(recipe, samples=1000, **calibration))
    for batch in batches:
        collector.start(len(batch))
        collector(torch.tensor(batch, dtype=torch.float32))
    assert collector.finite
    low, high = collector.result()
    return low.numpy(), high.numpy()


def check(found: tuple[numpy.ndarray, numpy.ndarray], low: object, high: object) -> None:
    """Compare with ends computed in double precision."""
    numpy.testing.assert_allclose(found[0].ravel(), numpy.ravel(low), rtol=1e-6, atol=1e-6)
    numpy.testing.assert_allclose(found[1].ravel(), numpy.ravel(high), rtol=1e-6, atol=1e-6)


EVERYTHING = numpy.stack(BATCHES)  # batch, sample, channel, row, column
BY_CHANNEL = numpy.moveaxis(EVERYTHING, 2, 0).reshape(3, -1)


def test_min_max_takes_the_extremes_of_everything() -> None:
    """min_max: the smallest value, and the largest magnitude for symmetric quantizers."""
    check(collect(Recipe()), EVERYTHING.min(), EVERYTHING.max())
    symmetric = collect(Recipe(absolute_high=True))
    check(symmetric, EVERYTHING.min(), numpy.abs(EVERYTHING).max())


def test_mixed_min_max_averages_over_samples() -> None:
    """mixed_min_max, per-tensor activations: the mean of the samples' magnitudes."""
    highs = numpy.abs(EVERYTHING).max((2, 3, 4))
    check(collect(SYMMETRIC), EVERYTHING.min(), highs.mean())
    asymmetric = collect(Recipe("extremes", "sample", True, True))
    lows, highs = EVERYTHING.min((2, 3, 4)), EVERYTHING.max((2, 3, 4))
    check(asymmetric, lows.mean(), highs.mean())


def test_samples_count_equally_when_the_last_batch_is_small() -> None:
    """A mean over samples is one over all of them, not a mean of batch means."""
    batches = [BATCHES[0], BATCHES[1][:1]]
    samples = numpy.concatenate(batches)
    check(
        collect(Recipe("extremes", "sample", True, True), batches),
        samples.min((1, 2, 3)).mean(),
        samples.max((1, 2, 3)).mean(),
    )


def test_mean_min_max_averages_over_batches() -> None:
    """mean_min_max: the mean of the batches' extremes."""
    found = collect(Recipe("extremes", "batch", True, True))
    check(found, EVERYTHING.min((1, 2, 3, 4)).mean(), EVERYTHING.max((1, 2, 3, 4)).mean())


def test_each_channel_has_its_own_extremes() -> None:
    """With a channel axis the ends are vectors, shaped to broadcast with the tensor."""
    found = collect(Recipe(), channel_axis=1, rank=4)
    assert found[0].shape == (1, 3, 1, 1)
    check(found, BY_CHANNEL.min(1), BY_CHANNEL.max(1))


@pytest.mark.parametrize("ranks", [(0.1, 99.9), (0, 100), (25, 50)])
def test_percentiles_are_those_of_numpy(ranks: tuple[float, float]) -> None:
    """percentile: linear interpolation between all values, as numpy.percentile."""
    recipe = Recipe("percentiles", "all", percentiles=ranks)
    check(collect(recipe), *numpy.percentile(EVERYTHING, ranks))
    found = collect(recipe, channel_axis=1, rank=4)
    check(found, *numpy.percentile(BY_CHANNEL, ranks, axis=1))


def test_mean_percentiles_are_averaged_over_batches() -> None:
    """mean_percentile: the mean of each batch's percentiles."""
    recipe = Recipe("percentiles", "batch", True, True, percentiles=(5, 90))
    expected = [numpy.percentile(batch, (5, 90)) for batch in BATCHES]
    check(collect(recipe), *numpy.mean(expected, 0))


def sigma_range(values: numpy.ndarray) -> tuple[float, float]:
    """Return median - and + 3 robust deviations of the values that are not zero."""
    values = values[values != 0]
    middle = numpy.median(values)
    reach = 3 * 1.4826230 * numpy.median(numpy.abs(values - middle))
    return middle - reach, middle + reach


def test_three_sigma_leaves_zeros_aside() -> None:
    """threesigma: median and median deviation of all values but zeros, per tensor or channel."""
    batches = [numpy.where(batch > 3, 0, batch) for batch in BATCHES]
    recipe = Recipe("three_sigma", "all")
    check(collect(recipe, batches), *sigma_range(numpy.stack(batches)))
    rows = numpy.moveaxis(numpy.stack(batches), 2, 0).reshape(3, -1)
    expected = numpy.transpose([sigma_range(row) for row in rows])
    check(collect(recipe, batches, channel_axis=1, rank=4), *expected)


def test_three_sigma_invents_no_sign() -> None:
    """The output of a ReLU gets no negative range; a tensor of zeros gets none at all."""
    positive = [numpy.maximum(batch, 0) for batch in BATCHES]
    recipe = Recipe("three_sigma", "all")
    check(collect(recipe, positive), 0, sigma_range(numpy.stack(positive))[1])
    negative = [-batch for batch in positive]
    check(collect(recipe, negative), -sigma_range(numpy.stack(positive))[1], 0)
    check(collect(recipe, [numpy.zeros((4, 3))]), 0, 0)
    check(collect(recipe, [numpy.zeros((4, 3))], channel_axis=1, rank=2), [0] * 3, [0] * 3)


def test_points_of_one_op_are_not_averaged() -> None:
    """An op called for unlike tensors takes the lowest and highest of their own ends."""
    collector = RangeCollector(Calibration(Recipe("extremes", "sample", True, True)))
    for _ in range(3):
        collector.start(2)
        collector(torch.tensor([[-1.0, 1.0], [-3.0, 3.0]]))
        collector(torch.tensor([[0.0, 10.0], [0.0, 20.0]]))
    low, high = collector.result()
    assert (low.item(), high.item()) == (-2.0, 15.0)


def test_weights_are_looked_at_in_one_batch() -> None:
    """A weight is collected in the first batch that reaches it, at all its points."""
    collector = RangeCollector(Calibration(Recipe(), weight=True))
    collector.start(1)
    collector.start(1)
    collector(torch.tensor([1.0]))
    collector(torch.tensor([2.0]))
    collector.start(1)
    collector(torch.tensor([50.0]))
    assert collector.result()[1].item() == 2.0


def test_no_more_samples_are_looked_at_than_asked_for() -> None:
    """A collector stops when earlier batches held its samples."""
    collector = RangeCollector(Calibration(Recipe(), samples=4))
    for value in (1.0, 2.0, 3.0):
        collector.start(2)
        collector(torch.tensor([value, 0.0]))
    assert collector.result()[1].item() == 2.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("recipe", [SYMMETRIC, Recipe("percentiles", "all")])
def test_what_is_not_finite_is_noticed(value: float, recipe: Recipe) -> None:
    """NaN or infinity anywhere in a tensor is reported by every recipe."""
    collector = RangeCollector(Calibration(recipe))
    collector.start(2)
    collector(torch.tensor([[1.0, 2.0], [value, 3.0]]))
    assert not collector.finite


def test_nothing_seen_is_no_range() -> None:
    """Without a tensor, or with an empty one, there is no result."""
    collector = RangeCollector(Calibration(Recipe()))
    collector.start(1)
    collector(torch.zeros(0, 3))
    assert collector.result() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("recipe", [SYMMETRIC, Recipe("percentiles", "all")])
def test_all_number_types_give_float_ranges(dtype: torch.dtype, recipe: Recipe) -> None:
    """Half, double and whole numbers are understood; ranges are float32."""
    collector = RangeCollector(Calibration(recipe))
    collector.start(2)
    collector(torch.tensor([[-2, 1], [0, 4]]).to(dtype))
    low, high = collector.result()
    assert low.dtype == high.dtype == torch.float32
    assert -2 <= low.item() < -1.9


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 6), (4, 6)),  # batch first
        ((6, 4, 2), (4, 6, 2)),  # time first
        ((8, 5), (4, 2, 5)),  # windows or heads folded into the batch
        ((6, 5), (1, 6, 5)),  # no batch
        ((4,), (4,)),
        ((), (1,)),
    ],
)
def test_the_axis_of_samples_is_found(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """The samples of a batch of four are found wherever models put them."""
    assert per_sample(torch.zeros(shape), 4).shape == expected


def test_samples_of_a_vector_are_single_values() -> None:
    """A tensor of rank one has one value per sample."""
    check(collect(SYMMETRIC, [numpy.array([1.0, -3.0])]), -3, 2)


def test_a_tensor_without_its_batch_axis_keeps_its_channels() -> None:
    """The channel axis is counted from the end, so (C, H, W) has the channels of (N, C, H, W)."""
    found = collect(Recipe(), [BATCHES[0][0]], channel_axis=1, rank=4)
    assert found[0].shape == (1, 3, 1, 1)
    check(found, BATCHES[0][0].min((1, 2)), BATCHES[0][0].max((1, 2)))


def test_memory_layout_makes_no_difference() -> None:
    """Transposed and channels-last tensors have the extremes of their contiguous copies."""
    tensor = torch.randn(4, 3, 5, 7)
    for same in (tensor.to(memory_format=torch.channels_last), tensor.mT.contiguous().mT):
        for axis in (None, -3):
            for ours, expected in zip(
                extremes(same, axis, keep=1), extremes(tensor, axis, keep=1), strict=True
            ):
                assert torch.equal(ours, expected)


def test_a_reservoir_keeps_everything_that_fits() -> None:
    """Up to its capacity a reservoir is exact, and keeps copies."""
    reservoir = Reservoir(100_000)
    first = torch.arange(10.0)[None]
    reservoir.add(first)
    first.zero_()
    reservoir.add(torch.arange(10.0, 20.0)[None])
    assert torch.equal(reservoir.result(), torch.arange(20.0)[None])


def test_a_full_reservoir_stays_fair_and_small() -> None:
    """Beyond its capacity a reservoir keeps a bounded, even share of early and late values."""
    reservoir = Reservoir(4096)
    for start in range(0, 1_000_000, 10_000):
        reservoir.add(torch.arange(start, start + 10_000.0)[None])
    kept = reservoir.result()[0]
    assert 1024 <= len(kept) <= 4096
    assert len(kept.unique()) == len(kept)
    counts = torch.histc(kept, 10, 0, 1_000_000) / len(kept)
    assert (counts - 0.1).abs().max() < 0.02
    ranks = numpy.percentile(kept.numpy(), (1, 50, 99)) / 10_000
    numpy.testing.assert_allclose(ranks, (1, 50, 99), atol=0.5)


def test_percentiles_of_more_than_fits_are_close() -> None:
    """With a hundredth of the values kept, the 99.9th percentile is within a tenth of a sigma."""
    recipe = Recipe("percentiles", "all", percentiles=(0.1, 99.9))
    collector = RangeCollector(Calibration(recipe, samples=1000), capacity=2**15)
    values = torch.randn(32, 100_000, generator=torch.Generator().manual_seed(3))
    for batch in values.split(4):
        collector.start(4)
        collector(batch)
    low, high = collector.result()
    expected = numpy.percentile(values.numpy(), (0.1, 99.9))
    assert abs(low.item() - expected[0]) < 0.1
    assert abs(high.item() - expected[1]) < 0.1


def test_a_reservoir_disturbs_no_random_stream() -> None:
    """Choosing what to keep draws nothing from the global generator."""
    before = torch.get_rng_state()
    Reservoir(16).add(torch.zeros(1, 100_000))
    assert torch.equal(before, torch.get_rng_state())


def test_thinning_takes_one_of_each_group_of_neighbours() -> None:
    """A quarter of the columns is one of every four, not always the same one."""
    kept = thin(torch.arange(4000.0)[None], 0.25, torch.Generator().manual_seed(0))[0].long()
    assert torch.equal(kept // 4, torch.arange(1000))
    assert (torch.bincount(kept % 4) > 200).all()
