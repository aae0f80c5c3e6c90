# SPDX-License-Identifier: Apache-2.0
"""Other ways to choose bit widths, to compare the integer programme with; and random instances."""

from __future__ import annotations

import itertools
import random

from nncf.algorithms.mixed_precision.budget import Budget
from nncf.algorithms.mixed_precision.programme import Costs
from nncf.algorithms.mixed_precision.space import Product, Quantizer, Space


def following(space: Space, weights: dict[str, int]) -> dict[str, int]:
    """Return the widths of all quantizers in liberal mode when the weights have ``weights``."""
    widths = dict(weights)
    for name, quantizer in space.quantizers.items():
        if not quantizer.weight:
            partners = {weights[partner] for partner in space.partners.get(name, ())}
            common = partners & set(quantizer.widths)
            widths[name] = min(common or quantizer.widths) if partners else quantizer.widths[0]
    return widths


def total(costs: Costs, widths: dict[str, int]) -> float:
    return sum(row[widths[name]] for name, row in costs.items())


def brute_force(space: Space, costs: Costs, budget: Budget) -> float | None:
    """Return the least total cost within the budget, by trying every choice."""
    names = list(space.weights)
    found = []
    for bits in itertools.product(*(space.weights[name].widths for name in names)):
        widths = following(space, dict(zip(names, bits, strict=True)))
        if budget.cost(space, widths) <= budget.limit:
            found.append(total(costs, widths))
    return min(found, default=None)


def greedy(space: Space, costs: Costs, budget: Budget) -> dict[str, int] | None:
    """Narrow one weight after the other, the one that costs least per saved unit of the budget."""
    weights = {name: max(q.widths) for name, q in space.weights.items()}
    while True:
        now = following(space, weights)
        used = budget.cost(space, now)
        if used <= budget.limit:
            return now
        best: tuple[float, str, int] | None = None
        for name, quantizer in space.weights.items():
            for bits in (b for b in quantizer.widths if b < weights[name]):
                saved = used - budget.cost(space, following(space, {**weights, name: bits}))
                price = costs[name][bits] - costs[name][weights[name]]
                if saved > 0 and (best is None or price / saved < best[0]):
                    best = (price / saved, name, bits)
        if best is None:
            return None
        weights[best[1]] = best[2]


def instance(seed: int, *, layers: int, bits: tuple[int, ...] = (8, 4, 2)) -> tuple[Space, Costs]:
    """Return a random network of layers, some of which read one tensor, and random costs."""
    draw = random.Random(seed)
    quantizers: dict[str, Quantizer] = {}
    products: list[Product] = []
    costs: dict[str, dict[int, float]] = {}
    for number in range(layers):
        offered = draw.choice([bits, bits[:2], bits[:1], tuple(bits)])
        if number == 0 or draw.random() < 0.7:
            incoming = f"a{number}"
            quantizers[incoming] = Quantizer(incoming, (), offered, weight=False)
        name, values = f"w{number}", draw.randint(10, 5000)
        widths = draw.choice([bits, bits, bits[:2], bits[1:]])
        quantizers[name] = Quantizer(name, (), widths, weight=True, values=values)
        products.append(Product(name, incoming, 2.0 * values * draw.choice([1, 4, 64, 1024])))
        scale = 10 ** draw.uniform(-8, 2)
        costs[name] = {b: scale * 4.0 ** (8 - b) * draw.uniform(0.5, 1.5) for b in widths}
    return Space(quantizers, tuple(products)), costs
