# SPDX-License-Identifier: Apache-2.0
"""Schedules of the pruning level, compared with their formulas and published values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nncf.algorithms.filter_pruning.options import FilterPruningOptions
from nncf.algorithms.filter_pruning.schedule import PruningScheduler, bias_rate, level_at

KINDS = ("exponential", "exponential_with_bias", "baseline")
ENDS = [(i / 20, t / 20) for i in range(19) for t in range(i + 1, 20)]


class Recorder:
    """A controller that notes what its schedule asks for."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def set_pruning_level(self, pruning_level: float) -> None:
        self.calls.append(pruning_level)

    def freeze(self) -> None:
        self.calls.append("freeze")


def scheduled(pruning_init: float = 0.0, **params: Any) -> tuple[Recorder, PruningScheduler]:
    recorder = Recorder()
    options = FilterPruningOptions.read({"pruning_init": pruning_init, "params": params})
    return recorder, PruningScheduler(recorder, options)


def levels(scheduler: PruningScheduler, epochs: int) -> list[float]:
    found = []
    for _ in range(epochs):
        scheduler.epoch_step()
        found.append(scheduler.current_pruning_level)
    return found


def test_biased_exponential_gives_the_published_levels() -> None:
    """Initial level 0.1, target 0.7, 3 epochs of warm-up, 5 of pruning: the published vector."""
    recorder, scheduler = scheduled(
        0.1, schedule="exponential_with_bias", pruning_target=0.7, num_init_steps=3, pruning_steps=5
    )
    published = [0, 0, 0, 0.1, 0.6489741, 0.6956869, 0.6996617, 0.7, 0.7, 0.7]
    assert levels(scheduler, 10) == pytest.approx(published, abs=1e-6)
    assert recorder.calls[:8] == pytest.approx(published[:8], abs=1e-6)
    assert recorder.calls[8:] == [0.7, "freeze", "freeze"]  # frozen masks are not set again


@pytest.mark.parametrize(
    ("initial", "target", "rate"),
    [(0.0, 0.5, 11.1), (0.1, 0.5, 9.30), (0.1, 0.4, 8.79), (0.1, 0.25, 6.99)],
)
def test_rate_of_the_biased_exponential_has_known_values(
    initial: float, target: float, rate: float
) -> None:
    """The rate times the length depends on the ends alone and has the values known for it."""
    assert bias_rate(initial, target) == pytest.approx(rate, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [0, 1, 2, 3, 7, 19, 28, 29, 99, 299])
def test_every_length_goes_from_one_end_to_the_other(kind: str, last: int) -> None:
    """For many ends the level never falls, begins at the initial one and ends at the target."""
    for ends in ENDS:
        found = [level_at(kind, epoch, last, ends) for epoch in range(last + 2)]
        assert found == sorted(found)
        assert found[last:] == [ends[1], ends[1]]
        assert kind == "baseline" or last == 0 or found[0] == pytest.approx(ends[0], abs=1e-12)


def test_every_length_from_1_to_300_is_a_sound_biased_exponential() -> None:
    """At all lengths the curve is monotone and has three quarters of its target at an eighth."""
    for last in range(1, 301):
        found = [level_at("exponential_with_bias", e, last, (0.1, 0.6)) for e in range(last + 1)]
        assert found == sorted(found)
        assert (found[0], found[-1]) == pytest.approx((0.1, 0.6), abs=1e-12)
        if last % 8 == 0:
            assert found[last // 8] == pytest.approx(0.75 * 0.6, abs=1e-9)


def test_the_biased_exponential_keeps_its_condition_wherever_it_can() -> None:
    """Three quarters at an eighth of the way, unless a straight line is ahead of that."""
    for initial, target in ENDS:
        found = level_at("exponential_with_bias", 8, 64, (initial, target))
        line = initial + (target - initial) / 8
        assert found == pytest.approx(max(0.75 * target, line), abs=1e-6)


def test_exponential_leaves_the_same_share_each_epoch() -> None:
    """From 0.2 to 0.6 in 5 epochs the share that is left falls by the fourth root of a half."""
    _, scheduler = scheduled(0.2, schedule="exponential", pruning_target=0.6, pruning_steps=5)
    expected = [1 - 0.8 * 0.5 ** (epoch / 4) for epoch in range(5)]
    assert scheduler.current_pruning_level == 0.2
    assert levels(scheduler, 7) == pytest.approx([*expected, 0.6, 0.6])


def test_baseline_prunes_at_once_after_the_warm_up() -> None:
    """Nothing for two epochs, then the whole target, and the masks are frozen."""
    recorder, scheduler = scheduled(schedule="baseline", pruning_target=0.4, num_init_steps=2)
    levels(scheduler, 3)
    assert recorder.calls == [0.0, 0.0, 0.4, "freeze"]


def test_masks_freeze_when_the_schedule_is_over() -> None:
    """The first freeze comes in the epoch after warm-up and pruning, not before."""
    recorder, scheduler = scheduled(
        schedule="exponential", pruning_target=0.5, num_init_steps=1, pruning_steps=3
    )
    levels(scheduler, 4)
    assert "freeze" not in recorder.calls
    levels(scheduler, 1)
    assert recorder.calls[-2:] == [0.5, "freeze"]


def test_the_initial_level_is_set_at_creation_unless_there_is_a_warm_up() -> None:
    """Without warm-up the initial level holds before the first epoch; with one nothing is pruned."""
    without, _ = scheduled(0.3, pruning_target=0.5)
    warming, scheduler = scheduled(0.3, pruning_target=0.5, num_init_steps=1)
    assert (without.calls, warming.calls) == ([0.3], [])
    assert scheduler.current_pruning_level == 0.0


def test_a_target_of_flops_is_the_end_of_the_schedule() -> None:
    """With pruning_flops_target the schedule ends there."""
    _, scheduler = scheduled(schedule="exponential", pruning_flops_target=0.35, pruning_steps=2)
    assert levels(scheduler, 2) == [0.0, 0.35]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_schedule_resumes_where_it_was(kind: str, stop: int) -> None:
    """Saved as JSON after any epoch and loaded, it asks for the very levels of an unbroken run."""
    params = {"schedule": kind, "pruning_target": 0.6, "num_init_steps": 2}
    whole = levels(scheduled(0.1, **params)[1], 9)
    _, first = scheduled(0.1, **params)
    begun = levels(first, stop)
    _, second = scheduled(0.1, **params)
    second.load_state(json.loads(json.dumps(first.get_state())))
    assert begun + levels(second, 9 - stop) == whole


def test_an_epoch_may_be_given_by_its_number() -> None:
    """epoch_step(n) asks for the level of epoch n."""
    recorder, scheduler = scheduled(schedule="exponential", pruning_target=0.5, pruning_steps=10)
    scheduler.epoch_step(4)
    assert recorder.calls == [pytest.approx(1 - 0.5 ** (4 / 9))]
