# SPDX-License-Identifier: Apache-2.0
"""The search for the highest rate, on curves that are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncf.training.search import Limits, Search

LIMITS = Limits(
    minimal_rate=0.0,
    maximal_rate=0.95,
    patience=2,
    step_reduction=0.5,
    lr_reduction=0.5,
    minimal_step=0.025,
    second_step=1.0,  # no second look
)


def rates(
    meets: Callable[[float], bool], start: float, limits: Limits = LIMITS
) -> tuple[list[float], Search]:
    """Return the rates that are trained at, epoch by epoch, and how the search ends."""
    search = Search(rate=start, step=0.1, met=meets(start))
    trained: list[float] = []
    while len(trained) < 1000:
        if search.is_due(limits):
            search = search.next_rate(limits)
            if search.finished:
                return trained, search
        trained.append(round(search.rate, 6))
        search = search.after_epoch(meets(search.rate))
    raise AssertionError("the search goes on and on")


def test_steps_shrink_where_the_direction_turns() -> None:
    """Up by whole steps, down by half of one, up by a quarter; two epochs where the goal is missed."""
    trained, search = rates(lambda rate: rate < 0.58, 0.3)
    assert trained == [0.4, 0.5, 0.6, 0.6, 0.55, 0.575]
    assert search.passed == pytest.approx(0.575)
    assert search.lr_factor == 0.25


def test_down_from_a_rate_that_is_too_high() -> None:
    """Rates below the start are tried until one meets the goal."""
    trained, search = rates(lambda rate: rate < 0.33, 0.5)
    assert trained == [0.4, 0.4, 0.3, 0.35, 0.35, 0.325]
    assert search.passed == pytest.approx(0.325)


def test_rates_that_a_model_does_not_have() -> None:
    """What lies between a rate that was set and the one it led to is known with them."""
    search = Search(rate=0.0, step=0.1, met=True).next_rate(LIMITS)
    search = replace(search, reached=0.34).after_epoch(met=True).next_rate(LIMITS)
    assert (search.rate, search.passed) == pytest.approx((0.44, 0.34))
    search = replace(search, reached=0.6).after_epoch(met=False).after_epoch(met=False)
    search = search.next_rate(LIMITS)
    assert (search.rate, search.failed) == pytest.approx((0.39, 0.44))


def test_start_may_be_tried_again() -> None:
    """The rate of the schedule has not had its own epochs, so missing the goal there proves nothing."""
    answers = iter([False, True, True, True, False, False, False, False])
    trained, search = rates(lambda _: next(answers), 0.3)
    assert trained == [0.2, 0.25, 0.3, 0.35, 0.35, 0.325, 0.325]
    assert search.passed == pytest.approx(0.3)


def test_known_rates_are_passed_over() -> None:
    """No rate is trained below one that met the goal, or above one that did not."""
    trained, _ = rates(lambda rate: rate < 0.31, 0.3)
    assert trained == [0.4, 0.4, 0.35, 0.35, 0.325, 0.325]


def test_steps_shrink_where_there_is_no_room() -> None:
    """Rates stay above zero; when nothing meets the goal the search ends."""
    trained, search = rates(lambda rate: False, 0.12)
    assert trained == [0.02, 0.02]
    assert search.passed is None
    assert "below 0.025" in search.finished


def test_highest_rate_ends_the_search() -> None:
    """The last step goes to the highest rate itself."""
    trained, search = rates(lambda rate: True, 0.8)
    assert trained == [0.9, 0.95]
    assert search.finished == "the highest rate, 0.95, meets the goal"


def test_second_look_begins_above_the_best() -> None:
    """Once, with its own step; rates that missed the goal may be better by now."""
    first = [True, False, False, True, False, False]  # 0.4 is missed twice, 0.35 met, 0.375 not
    answers = iter([*first, True, True, False, False, False, False])
    limits = replace(LIMITS, second_step=0.05)
    trained, search = rates(lambda _: next(answers), 0.3, limits)
    assert trained == [0.4, 0.4, 0.35, 0.375, 0.375, 0.4, 0.45, 0.5, 0.5, 0.475, 0.475]
    assert search.passed == pytest.approx(0.45)
    assert "below 0.025" in search.finished


@given(
    threshold=st.floats(0.0, 1.0),
    start=st.floats(0.0, 0.95),
    patience=st.integers(1, 4),
    reduction=st.floats(0.2, 0.8),
    second=st.sampled_from([0.05, 1.0]),
)
def test_search_ends_near_the_threshold(
    threshold: float, start: float, patience: int, reduction: float, second: float
) -> None:
    """Where rates up to a threshold meet the goal, the highest found is within one last step."""
    limits = Limits(0.0, 0.95, patience, reduction, 0.5, 0.01, second)
    trained, search = rates(lambda rate: rate <= threshold, start, limits)
    assert all(0 < rate <= 0.95 for rate in trained)
    found = search.passed or 0.0
    assert found <= threshold
    assert min(threshold, 0.95) - found <= 0.01 / reduction + 1e-6
    tried = dict.fromkeys(trained)
    assert len(trained) <= 2 * patience * len(tried)


@given(answers=st.lists(st.booleans(), min_size=50, max_size=50), start=st.floats(0.0, 0.95))
def test_search_ends_whatever_the_answers(answers: list[bool], start: float) -> None:
    """Answers that contradict each other end the search as well."""
    told = iter(answers * 30)
    trained, search = rates(lambda _: next(told), start, replace(LIMITS, second_step=0.05))
    assert len(trained) < 300
    assert search.finished
