# SPDX-License-Identifier: Apache-2.0
"""Schedules of the sparsity level, compared with their formulas."""

from __future__ import annotations

import json

import pytest

import nncf
from nncf.algorithms import options_class
from nncf.algorithms.sparsity_schedulers import SparsityScheduler, make_scheduler


class Recorder:
    """A controller that notes what its scheduler asks for."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.sparsity = 0.0

    @property
    def levels(self) -> list[float]:
        return [call for call in self.calls if call != "freeze"]

    def set_sparsity_level(self, level: float) -> None:
        self.calls.append(level)

    def freeze(self) -> None:
        self.calls.append("freeze")


def scheduled(*, initial_level: float = 0.0, name: str = "magnitude_sparsity", **params):
    """Return ``(controller, scheduler)`` of a section's params."""
    recorder = Recorder()
    options = options_class(name).read({"params": params}).params
    scheduler = make_scheduler(
        recorder, options, initial_level=initial_level, current_sparsity=lambda: recorder.sparsity
    )
    return recorder, scheduler


def epochs(scheduler, count: int, steps: int = 0) -> None:
    for _ in range(count):
        scheduler.epoch_step()
        for _ in range(steps):
            scheduler.step()


def test_polynomial_follows_the_formula():
    """Concave: target − (target − initial)(1 − t)^0.9, then the target until the end."""
    recorder, scheduler = scheduled(
        initial_level=0.1, sparsity_target=0.7, sparsity_target_epoch=4, sparsity_freeze_epoch=6
    )
    assert scheduler.current_sparsity_level == 0.1
    epochs(scheduler, 6)
    expected = [0.7 - 0.6 * (1 - t / 4) ** 0.9 for t in range(4)] + [0.7, 0.7]
    assert recorder.calls == pytest.approx(expected)
    assert recorder.calls[4] == 0.7


def test_convex_polynomial_follows_the_formula():
    """Convex: initial + (target − initial) t^power, exact at the target."""
    recorder, scheduler = scheduled(
        initial_level=0.1, sparsity_target=0.7, sparsity_target_epoch=4, power=3, concave=False
    )
    epochs(scheduler, 5)
    assert recorder.calls == pytest.approx([0.1 + 0.6 * (t / 4) ** 3 for t in range(5)])
    assert recorder.calls[-1] == 0.7


def test_exponential_divides_the_density_evenly():
    """The density shrinks by one factor per epoch from the initial one to the target's."""
    recorder, scheduler = scheduled(
        initial_level=0.2, schedule="exponential", sparsity_target=0.9, sparsity_target_epoch=3
    )
    epochs(scheduler, 5)
    densities = [1 - level for level in recorder.calls]
    factor = (0.1 / 0.8) ** (1 / 3)
    assert densities == pytest.approx([0.8, 0.8 * factor, 0.8 * factor**2, 0.1, 0.1])
    assert recorder.calls[-1] == 0.9


def test_multistep_jumps_at_its_epochs():
    """Each level holds until the next epoch of the list; the last one is the target."""
    recorder, scheduler = scheduled(
        schedule="multistep", multistep_steps=[1, 3], multistep_sparsity_levels=[0.1, 0.4, 0.6]
    )
    epochs(scheduler, 5)
    assert recorder.calls == [0.1, 0.4, 0.4, 0.6, 0.6]
    assert scheduler.target_level == 0.6


@pytest.mark.parametrize("schedule", ["polynomial", "exponential"])
def test_target_at_epoch_zero_is_set_at_once(schedule):
    """``sparsity_target_epoch`` 0 means that the first epoch has the target."""
    recorder, scheduler = scheduled(schedule=schedule, sparsity_target_epoch=0)
    epochs(scheduler, 1)
    assert recorder.calls == [0.5]


def test_freeze_epoch_sets_its_level_and_freezes():
    """At the freeze epoch the level is set once more, then masks are frozen and nothing is set."""
    recorder, scheduler = scheduled(sparsity_target_epoch=2, sparsity_freeze_epoch=2)
    epochs(scheduler, 5)
    assert recorder.calls[2:4] == [0.5, "freeze"]
    assert recorder.calls[4:] == ["freeze", "freeze"]
    assert len(recorder.levels) == 3


def test_level_stays_when_masks_freeze_before_the_target():
    """Frozen early, the level remains what it was at the freeze epoch."""
    _, scheduler = scheduled(sparsity_target_epoch=10, sparsity_freeze_epoch=2)
    epochs(scheduler, 9)
    assert scheduler.current_sparsity_level == pytest.approx(0.5 - 0.5 * 0.8**0.9)


def test_level_grows_per_step():
    """With ``update_per_optimizer_step`` the time counts in fractions of an epoch."""
    recorder, scheduler = scheduled(
        update_per_optimizer_step=True, steps_per_epoch=4, sparsity_target_epoch=2, power=1
    )
    epochs(scheduler, 3, steps=4)
    assert sorted(set(recorder.levels)) == pytest.approx([k / 16 for k in range(9)])
    assert recorder.levels == sorted(recorder.levels)
    # At the target only the epochs set the level again, so masks do not follow every step.
    assert recorder.levels.count(0.5) == 1


def test_unknown_steps_per_epoch_are_counted_in_the_first_epoch(caplog):
    """The first epoch keeps its level and is counted, with a warning; then the level grows."""
    recorder, scheduler = scheduled(
        update_per_optimizer_step=True, sparsity_target_epoch=2, power=1
    )
    epochs(scheduler, 1, steps=5)
    assert recorder.levels == [0.0]
    assert "steps_per_epoch" in caplog.text
    epochs(scheduler, 1, steps=5)
    assert recorder.levels[1:] == pytest.approx([0.25 + 0.05 * k for k in range(5)])


def test_wrong_steps_per_epoch_are_an_error():
    """An epoch of another length than configured is reported when the next one begins."""
    _, scheduler = scheduled(update_per_optimizer_step=True, steps_per_epoch=4)
    epochs(scheduler, 1, steps=5)
    with pytest.raises(nncf.ConfigError, match=r"steps_per_epoch = 4, .* 5 steps"):
        scheduler.epoch_step()


def test_adaptive_waits_until_the_masks_are_near():
    """The level rises by ``step`` after ``patience`` epochs within ``eps``, up to the target."""
    recorder, scheduler = scheduled(
        name="rb_sparsity",
        initial_level=0.2,
        schedule="adaptive",
        patience=2,
        step=0.2,
        eps=0.03,
        sparsity_target=0.5,
    )
    seen = []
    for sparsity in (0.1, 0.18, 0.18, 0.3, 0.4, 0.4, 0.5, 0.5):
        recorder.sparsity = sparsity
        scheduler.epoch_step()
        seen.append(recorder.levels[-1])
    assert seen == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.4, 0.5, 0.5, 0.5])


def test_local_levels_have_no_schedule():
    """With local levels the scheduler only counts."""
    recorder, scheduler = scheduled(sparsity_level_setting_mode="local")
    epochs(scheduler, 3, steps=2)
    assert recorder.calls == []
    assert (scheduler.current_epoch, scheduler.current_step) == (2, 5)
    assert not isinstance(scheduler, SparsityScheduler)


SCHEDULES = {
    "polynomial": {},
    "per step": {"update_per_optimizer_step": True},
    "per step, known": {"update_per_optimizer_step": True, "steps_per_epoch": 4},
    "exponential": {"schedule": "exponential"},
    "multistep": {"schedule": "multistep", "multistep_steps": [2]},
    "adaptive": {"name": "rb_sparsity", "schedule": "adaptive", "patience": 2},
}


@pytest.mark.parametrize("params", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("cut", [1, 3, 4, 6, 10, 14])
def test_resumed_schedule_goes_on_as_if_never_stopped(params, cut):
    """Cut after any call, restored from JSON: the calls that follow are the same, none is extra."""
    params = {"sparsity_target_epoch": 4, "sparsity_freeze_epoch": 3, **params}
    if params.get("schedule") == "multistep":
        del params["sparsity_target_epoch"]
    names = [name for _ in range(4) for name in ("epoch_step", *["step"] * 4)]
    whole, scheduler = scheduled(**params)
    for place, name in enumerate(names):
        if place == cut:
            state = json.loads(json.dumps(scheduler.get_state()))
            whole.calls.clear()
        getattr(scheduler, name)()
    resumed, again = scheduled(**params)
    again.load_state(state)
    assert resumed.calls == []
    for name in names[cut:]:
        getattr(again, name)()
    assert resumed.calls == whole.calls
    assert again.get_state() == scheduler.get_state()
