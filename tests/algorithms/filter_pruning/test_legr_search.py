# SPDX-License-Identifier: Apache-2.0
"""The evolutionary search of the learned ranking, on losses that are plain functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nncf.algorithms.filter_pruning.legr import Coefficients, evolve

SPREADS = {f"layer{number}": 0.2 for number in range(12)}
TARGET = np.linspace(-2, 2, 12)


def distance(coefficients: Coefficients) -> float:
    """Return how far the scales are from those that are the best."""
    scales = np.array([scale for scale, _ in coefficients.values()])
    return float(np.abs(np.log(scales) - TARGET).mean())


def test_the_first_candidate_is_the_ranking_as_it_is() -> None:
    """So what is found is never judged worse than importances without coefficients."""
    seen: list[Coefficients] = []
    evolve(SPREADS, lambda c: seen.append(c) or 0.0, generations=5, seed=0)
    assert seen[0] == dict.fromkeys(SPREADS, (1.0, 0.0))


def test_every_candidate_is_another_one() -> None:
    """Draws of a shape are not repeated: 200 generations propose 200 different candidates."""
    seen: list[Any] = []
    evolve(SPREADS, lambda c: seen.append(tuple(c.values())) or 0.0, generations=200, seed=1)
    assert len(set(seen)) == len(seen) == 200


def test_the_same_seed_finds_the_same_and_touches_no_other_generator() -> None:
    """The search is a function of its seed, and NumPy's global generator is left alone."""
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 (this is the generator that is spared)
    found = [evolve(SPREADS, distance, generations=90, seed=seed) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002 (as above)


def test_the_search_comes_nearer_than_random_candidates() -> None:
    """400 generations end nearer to the optimum than 400 random candidates, for each seed."""
    for seed in range(3):
        generator = np.random.default_rng(seed)
        chance = min(np.abs(generator.normal(size=12) - TARGET).mean() for _ in range(400))
        _, loss = evolve(SPREADS, distance, generations=400, seed=seed)
        assert loss < 0.8 * chance


def test_mutation_changes_a_tenth_of_the_groups_and_at_least_one() -> None:
    """After the population each candidate differs from an earlier one in one group of twelve."""
    seen: list[Mapping[str, Any]] = []

    def judge(coefficients: Coefficients) -> float:
        seen.append(coefficients)
        return float(len(seen))

    evolve(SPREADS, judge, generations=40, seed=0)
    for place in range(10, 40):
        changes = [sum(seen[place][n] != other[n] for n in SPREADS) for other in seen[:place]]
        assert min(changes) == 1


def test_a_loss_that_is_never_finite_wins_nothing() -> None:
    """The candidate with a finite loss is found among infinite ones."""
    calls: list[int] = []

    def judge(_: Coefficients) -> float:
        calls.append(1)
        return 1.0 if len(calls) == 7 else float("inf")

    assert evolve(SPREADS, judge, generations=20, seed=0)[1] == 1.0
