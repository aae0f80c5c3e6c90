# SPDX-License-Identifier: Apache-2.0
"""The integer programme against every choice there is, and against a greedy one."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from nncf.algorithms.mixed_precision.budget import Budget, Kind, ratio_of
from nncf.algorithms.mixed_precision.programme import check_reach, solve
from nncf.algorithms.mixed_precision.space import Product, Quantizer, Space
from nncf.errors import ConfigError, LevelError
from tests.algorithms.mixed_precision.solvers import brute_force, following, greedy, instance, total


def between(space: Space, kind: Kind, share: float) -> Budget:
    """Return a budget that lies at a share of the way from the least to the greatest cost."""
    ends = [
        Budget(kind, 0.0).cost(
            space, following(space, {n: f(q.widths) for n, q in space.weights.items()})
        )
        for f in (min, max)
    ]
    return Budget(kind, ends[0] + share * (ends[1] - ends[0]))


@pytest.mark.parametrize("kind", ["compression_ratio", "bytes", "bit_operations"])
@pytest.mark.parametrize("seed", range(12))
def test_no_choice_is_better(kind: Kind, seed: int) -> None:
    """The result costs what the best of all choices costs, keeps to the budget and to the rules."""
    space, costs = instance(seed, layers=6)
    for share in (0.0, 0.3, 0.7):
        budget = between(space, kind, share)
        widths = solve(space, costs, budget)
        assert widths == following(space, {name: widths[name] for name in space.weights})
        assert budget.cost(space, widths) <= budget.limit
        assert total(costs, widths) == pytest.approx(brute_force(space, costs, budget), rel=1e-9)


@pytest.mark.parametrize("kind", ["compression_ratio", "bytes", "bit_operations"])
def test_it_is_at_least_as_good_as_greedy(kind: Kind) -> None:
    """On random networks of 20 layers greedy choice never costs less, and often more."""
    worse = 0
    for seed in range(25):
        space, costs = instance(100 + seed, layers=20)
        budget = between(space, kind, 0.4)
        found = total(costs, solve(space, costs, budget))
        by_greedy = greedy(space, costs, budget)
        if by_greedy is None:
            continue
        assert found <= total(costs, by_greedy) * (1 + 1e-9)
        worse += found < total(costs, by_greedy) * (1 - 1e-6)
    assert worse >= 5


def test_equal_inputs_give_equal_choices() -> None:
    """The choice repeats itself, also among choices that cost the same."""
    space, costs = instance(5, layers=15)
    costs = {name: dict.fromkeys(row, 1.0) for name, row in costs.items()}
    budget = between(space, "bytes", 0.5)
    assert [solve(space, costs, budget) for _ in range(3)] == [solve(space, costs, budget)] * 3


@pytest.mark.parametrize("kind", ["bytes", "bit_operations"])
def test_a_budget_out_of_reach_names_the_nearest(kind: Kind) -> None:
    """A budget below the least cost is refused, with that cost."""
    space, costs = instance(1, layers=5)
    least = between(space, kind, 0.0)
    budget = Budget(kind, least.limit * 0.99)
    nearest = budget.describe(least.limit, space)
    with pytest.raises(LevelError, match="nearest possible is " + nearest.replace("(", r"\(")):
        solve(space, costs, budget)
    with pytest.raises(LevelError, match="nearest possible"):
        check_reach(space, budget)
    check_reach(space, least)
    assert set(solve(space, costs, least)) == set(space.quantizers)


def test_a_ratio_out_of_range_names_the_range() -> None:
    """A ratio above or below what the widths allow is refused with both ends."""
    space, costs = instance(2, layers=5)
    low, high = (ratio_of(between(space, "compression_ratio", s).limit, space) for s in (1.0, 0.0))
    flops = sum(product.flops for product in space.products)
    for ratio in (high * 1.01, low * 0.99):
        budget = Budget("compression_ratio", 8 * flops / ratio)
        expected = rf"Invalid compression ratio={ratio:.4g}\. Should be within range \[{low:.4g}, {high:.4g}\]"
        with pytest.raises(AttributeError, match=expected):
            check_reach(space, budget)
    with pytest.raises(LevelError, match="Invalid compression ratio"):
        solve(space, costs, Budget("compression_ratio", 8 * flops / (high * 1.01)))


@pytest.mark.parametrize("seed", range(6))
def test_strict_mode_gives_one_width_to_all_that_meet(seed: int) -> None:
    """In strict mode weights and activations of one group share a width, and no choice is better."""
    random_space, random_costs = instance(seed, layers=6)
    quantizers = {
        name: dataclasses.replace(quantizer, widths=(8, 4, 2))
        for name, quantizer in random_space.quantizers.items()
    }
    space = Space(quantizers, random_space.products)
    costs = {
        name: {b: max(row.values()) * 3.0 ** (8 - b) for b in (8, 4, 2)}
        for name, row in random_costs.items()
    }
    budget = between(space, "bit_operations", 0.4)
    widths = solve(space, costs, budget, strict=True)
    groups = list(space.partners)
    tried = []
    for bits in itertools.product((8, 4, 2), repeat=len(groups)):
        choice = dict(zip(groups, bits, strict=True))
        choice |= {p.weight: choice[p.activation] for p in space.products if p.activation}
        if budget.cost(space, choice) <= budget.limit:
            tried.append(total(costs, choice))
    assert all(widths[p.weight] == widths[p.activation] for p in space.products if p.activation)
    assert budget.cost(space, widths) <= budget.limit
    assert total(costs, widths) == pytest.approx(min(tried), rel=1e-9)


def test_strict_mode_needs_a_common_width() -> None:
    """Quantizers that meet and have no width in common are refused by name in strict mode."""
    quantizers = {
        "a": Quantizer("a", (), (8,), weight=False),
        "w": Quantizer("w", (), (4, 2), weight=True, values=8),
    }
    space = Space(quantizers, (Product("w", "a", 16.0),))
    with pytest.raises(ConfigError, match="No hardware compatible bitwidth for activation"):
        solve(space, {"w": {4: 1.0, 2: 2.0}}, Budget("bytes", 100), strict=True)
    assert solve(space, {"w": {4: 1.0, 2: 2.0}}, Budget("bytes", 100)) == {"a": 8, "w": 4}


def test_activations_without_layers_keep_the_usual_width() -> None:
    """What feeds no layer (an addition, say) has nothing to follow and keeps its first width."""
    quantizers = {
        "sum": Quantizer("sum", (), (8, 4, 2), weight=False),
        "w": Quantizer("w", (), (8, 2), weight=True, values=8),
    }
    space = Space(quantizers, (Product("w", None, 16.0),))
    costs = {"w": {8: 1.0, 2: 2.0}}
    assert solve(space, costs, Budget("bytes", 16)) == {"sum": 8, "w": 2}


def test_a_network_of_many_layers_is_solved_in_seconds() -> None:
    """A hundred layers with three widths each take seconds, not hours."""
    space, costs = instance(7, layers=100)
    budget = between(space, "compression_ratio", 0.5)
    widths = solve(space, costs, budget)
    assert budget.cost(space, widths) <= budget.limit
