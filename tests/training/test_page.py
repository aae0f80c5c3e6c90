# SPDX-License-Identifier: Apache-2.0
"""The page of a run: what it shows, and what it never contains."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from nncf.compression.stage import CompressionStage
from nncf.training.goal import Goal
from nncf.training.page import front, page
from nncf.training.progress import Attempt, Progress

GOAL = Goal(uncompressed=90.0, tolerable=89.0)


def attempt(epoch: int, rate: float | None, metric: float, **changes: Any) -> Attempt:
    budget = GOAL.budget(metric)
    full = {"stage": CompressionStage.FULLY_COMPRESSED, "is_settled": True, "lr_factor": 1.0}
    return Attempt(epoch, rate, metric, budget, **{**full, "seconds": 2.0 * epoch, **changes})


ATTEMPTS = (
    attempt(0, 0.0, 90.0, stage=CompressionStage.UNCOMPRESSED),
    attempt(1, 0.3, 89.5),
    attempt(2, 0.4, 89.8),
    attempt(3, 0.5, 89.1),
    attempt(4, 0.6, 70.0),
    attempt(5, 0.5, 89.05),
)


def test_front_has_what_nothing_beats() -> None:
    """Of the good ones those with a higher rate or a better metric than all others."""
    assert [item.epoch for item in front(ATTEMPTS, higher_is_better=True)] == [2, 3]
    assert front(ATTEMPTS[:1], higher_is_better=True) == []


@pytest.mark.parametrize("finished", ["", "the goal is met"])
def test_page_shows_every_attempt(finished: str) -> None:
    """A row and a point for each, the line of the goal, and the result in words."""
    text = page(GOAL, Progress(ATTEMPTS, finished=finished), by_rate=True)
    drawing = text[text.index("<svg") : text.index("</svg>") + 6]
    tags = [item.tag for item in ElementTree.fromstring(drawing).iter()]
    assert tags.count("circle") == len(ATTEMPTS)
    assert text.count("<tr class=") == len(ATTEMPTS)
    assert text.count('class="met best"') == 1
    assert "The result is 89.1 at rate 0.500 after epoch 3, which meets it." in text
    assert ("The run has not ended." in text) == (not finished)
    assert "http" not in text
    assert "src=" not in text


def test_page_without_rates_is_drawn_over_epochs() -> None:
    """Metrics that are not finite are in the table alone."""
    attempts = (attempt(0, None, 80.0), attempt(1, None, float("nan")), attempt(2, None, 89.0))
    text = page(GOAL, Progress(attempts), by_rate=False)
    assert text.count("<circle") == 2
    assert ">epoch</text>" in text
    assert text.count("<tr class=") == 3
