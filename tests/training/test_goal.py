# SPDX-License-Identifier: Apache-2.0
"""Which metric is good enough."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from nncf.config.accuracy_aware import EarlyExitParams
from nncf.errors import ConfigError
from nncf.training.goal import Goal, to_number


def goal(uncompressed: Any, **options: Any) -> Goal:
    params = EarlyExitParams.model_validate({"maximal_total_epochs": 1, **options})
    return Goal.of(params, uncompressed)


def test_absolute_and_relative_drops() -> None:
    """A relative drop is in percent of the uncompressed metric, an absolute one in its units."""
    assert goal(80.0, maximal_absolute_accuracy_degradation=1.5).tolerable == 78.5
    assert goal(80.0, maximal_relative_accuracy_degradation=10).tolerable == pytest.approx(72)
    assert goal(0.8, maximal_absolute_accuracy_degradation=0.0).budget(0.8) == 0.0


def test_lower_can_be_better() -> None:
    """With a loss the drop is a rise, and below it is good."""
    found = goal(2.0, maximal_relative_accuracy_degradation=5, higher_is_better=False)
    assert found.tolerable == pytest.approx(2.1)
    assert found.budget(2.0) == pytest.approx(0.1)
    assert found.budget(2.3) == pytest.approx(-0.2)
    negative = goal(-3.0, maximal_relative_accuracy_degradation=10, higher_is_better=False)
    assert negative.tolerable == pytest.approx(-2.7)


def test_nan_is_never_good_enough() -> None:
    """Its budget is minus infinity."""
    found = goal(80.0, maximal_absolute_accuracy_degradation=1)
    assert found.budget(math.nan) == -math.inf


@pytest.mark.parametrize("wrong", [math.nan, math.inf, None, "76.3", True, [76.3, 93.0]])
def test_accuracy_that_is_no_number_is_refused(wrong: Any) -> None:
    """The message says what was passed."""
    with pytest.raises(ConfigError, match="uncompressed_model_accuracy = "):
        goal(wrong, maximal_absolute_accuracy_degradation=1)


@pytest.mark.parametrize(
    "drop",
    [
        {"maximal_absolute_accuracy_degradation": 1.0},
        {"maximal_relative_accuracy_degradation": 100},
    ],
)
def test_drop_that_tolerates_any_model_is_refused(drop: dict[str, float]) -> None:
    """One point of an accuracy given as a fraction is a mistake of units."""
    with pytest.raises(ConfigError, match="tolerates any model"):
        goal(0.763, **drop)


def test_numbers_of_all_kinds() -> None:
    """Tensors and arrays of one value count, those of several do not."""
    for one in (0.5, np.float32(0.5), np.array([0.5]), torch.tensor(0.5), torch.tensor([0.5])):
        assert to_number(one) == 0.5
    for other in (None, True, "0.5", (0.5, 0.6), {"acc": 0.5}, torch.zeros(2), np.zeros(2)):
        assert to_number(other) is None
