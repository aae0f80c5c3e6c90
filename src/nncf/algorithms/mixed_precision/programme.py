# SPDX-License-Identifier: Apache-2.0
"""The choice of widths as an integer programme, solved exactly.

One binary variable ``x[q, b]`` says that quantizer q has b bits; minimised is the sum of their
costs, under the budget. What a product of a weight and an activation costs depends on both, so it
has variables ``z[b, a]`` whose margins are the two choices. In liberal mode an activation has the
least width that a weight among its partners has and it may have itself, or else its own least;
``p[a]`` says that some partner has a bits. In strict mode partners share their variables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nncf.algorithms.mixed_precision.budget import Budget
from nncf.algorithms.mixed_precision.space import Quantizer, Space
from nncf.errors import ConfigError, LevelError
from nncf.logging import nncf_logger

Costs = Mapping[str, Mapping[int, float]]
"""By weight quantizer and bits, what is minimised."""

_SCALE = 1e6  # of the objective: the solver takes differences below 1e-6 for none
_SECONDS = 300.0
_MOST_REPAIRS = 100

Choice = dict[int, int]
"""By bits, the variable that says it."""


def solve(space: Space, costs: Costs, budget: Budget, *, strict: bool = False) -> dict[str, int]:
    """Return the widths of all quantizers with the least total cost that keep to the budget.

    Raises LevelError, which names the nearest possible, when no choice does, and ConfigError in
    strict mode for quantizers that have no width in common.
    """
    programme = _Programme(space, budget, strict=strict)
    limit = budget.limit
    for _ in range(_MOST_REPAIRS):
        widths = programme.minimise(programme.objective(costs), limit)
        if widths is None:
            raise LevelError(_out_of_reach(programme, budget))
        excess = budget.cost(space, widths) - budget.limit
        if excess <= 0:
            return widths
        limit -= max(excess, abs(budget.limit) * 1e-12)  # the solver's tolerance let it pass
    raise LevelError(_out_of_reach(programme, budget))


def check_reach(space: Space, budget: Budget, *, strict: bool = False) -> None:
    """Raise LevelError when the budget is out of reach, before anything costly is done."""
    programme = _Programme(space, budget, strict=strict)
    least, most = programme.extremes()
    # A ratio below the range is met by every choice, which nobody can have meant.
    pointless = budget.kind == "compression_ratio" and most < budget.limit * (1 - 1e-9)
    if least > budget.limit or pointless:
        raise LevelError(_out_of_reach(programme, budget))


def _out_of_reach(programme: _Programme, budget: Budget) -> str:
    space = programme.space
    low, high = (budget.describe(cost, space) for cost in programme.extremes())
    if budget.kind == "compression_ratio":
        wanted = budget.describe(budget.limit, space).replace("ratio ", "ratio=")
        lowest, highest = high.removeprefix("compression ratio "), low.split()[-1]
        return (
            f"initializer.precision: Invalid {wanted}. Should be within range "
            f"[{lowest}, {highest}]. The nearest possible is one of these ends: change "
            "compression_ratio, or give more bits to choose from."
        )
    return (
        f"initializer.precision.budget: no choice of bits costs {budget.describe(budget.limit, space)} "
        f"or less. The nearest possible is {low} (the widest costs {high}): raise the value, or give "
        "fewer bits to choose from."
    )


@dataclass
class _Programme:
    """Variables and rows of one space; ``minimise`` hands them to the solver."""

    space: Space
    budget: Budget
    strict: bool
    choices: dict[str, Choice] = field(default_factory=dict)
    usage: dict[int, float] = field(default_factory=dict)
    integral: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.strict:
            self._share()
        else:
            for name, quantizer in self.space.quantizers.items():
                self.choices[name] = self._choice(self._options(quantizer))
            for name, partners in self.space.partners.items():
                if len(self.choices[name]) > 1:
                    self._follow(self.choices[name], partners)
        self._count_usage()

    def _options(self, quantizer: Quantizer) -> tuple[int, ...]:
        free = quantizer.weight or quantizer.name in self.space.partners
        return quantizer.widths if free else quantizer.widths[:1]

    # --- building ------------------------------------------------------------------------------

    def _variable(self, *, integral: bool = True) -> int:
        self.integral.append(int(integral))
        return len(self.integral) - 1

    def _row(self, terms: dict[int, float], low: float, high: float) -> None:
        self.rows.append((terms, low, high))

    def _choice(self, widths: Iterable[int]) -> Choice:
        choice = {bits: self._variable() for bits in sorted(widths)}
        self._row(dict.fromkeys(choice.values(), 1.0), 1, 1)
        return choice

    def _follow(self, own: Choice, partners: Iterable[str]) -> None:
        """Tie an activation to the least width among its partners that it may have."""
        present: dict[int, int] = {}
        for bits in own:
            same = [c[bits] for name in partners if bits in (c := self.choices[name])]
            if not same:
                continue
            present[bits] = said = self._variable()
            for variable in same:
                self._row({said: 1, variable: -1}, 0, math.inf)
            self._row({said: 1, **dict.fromkeys(same, -1.0)}, -math.inf, 0)
        least, *others = own
        for bits in others:
            if bits not in present:
                self._row({own[bits]: 1}, 0, 0)
                continue
            self._row({own[bits]: 1, present[bits]: -1}, -math.inf, 0)
            for lower in [b for b in present if b < bits]:
                self._row({own[bits]: 1, present[lower]: 1}, -math.inf, 1)
        for bits in [b for b in present if b != least]:
            terms: dict[int, float] = {own[least]: 1, present[bits]: 1}
            if least in present:
                terms[present[least]] = -1
            self._row(terms, -math.inf, 1)

    def _share(self) -> None:
        """Give one choice to all quantizers that meet."""
        for group in _meeting(self.space):
            members = [self.space.quantizers[name] for name in group]
            options = [self._options(member) for member in members]
            common = [b for b in options[0] if all(b in other for other in options)]
            if not common:
                each = "; ".join(f"{m.name}: {list(m.widths)}" for m in members[:4])
                raise ConfigError(
                    "initializer.precision: No hardware compatible bitwidth for activation "
                    f"quantizers that must share one with the weights they meet. They have {each}. "
                    'Expected a common width: write "bitwidth_assignment_mode": "liberal", or give '
                    "other bits to choose from."
                )
            self.choices.update(dict.fromkeys(group, self._choice(common)))

    def _count_usage(self) -> None:
        usage, budget = self.usage, self.budget
        for name, quantizer in self.space.weights.items():
            for bits, variable in self.choices[name].items():
                usage[variable] = usage.get(variable, 0.0) + budget.of_weight(quantizer, bits)
        for product in self.space.products if budget.counts_products else ():
            for pair, variable in self._pairs(product.weight, product.activation).items():
                usage[variable] = usage.get(variable, 0.0) + budget.of_product(product, *pair)

    def _pairs(self, weight: str, activation: str | None) -> dict[tuple[int, int | None], int]:
        """Return the variables that say which pair of widths a weight and an activation have."""
        one = self.choices[weight]
        if activation is None:
            return {(bits, None): variable for bits, variable in one.items()}
        other = self.choices[activation]
        if other is one:
            return {(bits, bits): variable for bits, variable in one.items()}
        if len(other) == 1:
            return {(bits, *other): variable for bits, variable in one.items()}
        pairs: dict[tuple[int, int | None], int] = {}
        for bits in one:
            for width in other:
                pairs[bits, width] = self._variable(integral=False)
        for bits, variable in one.items():
            self._row({variable: -1, **{pairs[bits, width]: 1 for width in other}}, 0, 0)
        for width, variable in other.items():
            self._row({variable: -1, **{pairs[bits, width]: 1 for bits in one}}, 0, 0)
        return pairs

    # --- solving -------------------------------------------------------------------------------

    def objective(self, costs: Costs) -> dict[int, float]:
        terms: dict[int, float] = {}
        for name, row in costs.items():
            for bits, variable in self.choices[name].items():
                terms[variable] = terms.get(variable, 0.0) + row[bits]
        return terms

    def extremes(self) -> tuple[float, float]:
        """Return the least and the greatest cost in terms of the budget."""
        ends = []
        for sign in (1.0, -1.0):
            widths = self.minimise({v: sign * cost for v, cost in self.usage.items()}, math.inf)
            assert widths is not None  # without a limit there is always a choice
            ends.append(self.budget.cost(self.space, widths))
        return ends[0], ends[1]

    def minimise(self, objective: Mapping[int, float], limit: float) -> dict[str, int] | None:
        """Return the widths with the least objective, None when the limit lets none pass."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        rows = list(self.rows)
        if limit != math.inf:
            unit = _unit(self.usage.values())
            rows.append(
                ({v: cost / unit for v, cost in self.usage.items()}, -math.inf, limit / unit)
            )
        places = [(r, v, x) for r, (terms, _, _) in enumerate(rows) for v, x in terms.items()]
        at, variables, values = zip(*places, strict=True)
        matrix = coo_array((values, (at, variables)), shape=(len(rows), len(self.integral)))
        costs = np.zeros(len(self.integral))
        costs[list(objective)] = list(objective.values())
        largest = np.abs(costs).max(initial=0.0)
        found = milp(
            costs * (_SCALE / largest if largest else 1.0),
            integrality=np.array(self.integral),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(
                matrix.tocsr(), [low for _, low, _ in rows], [high for _, _, high in rows]
            ),
            options={"mip_rel_gap": 0.0, "time_limit": _SECONDS},
        )
        if found.x is None:
            return None
        if found.status == 1:
            nncf_logger.warning(
                "The choice of bit widths was stopped after %g s, %.2g %% from proven the best.",
                *(_SECONDS, 100 * found.mip_gap),
            )
        return {
            name: max(choice, key=lambda bits: found.x[choice[bits]])
            for name, choice in self.choices.items()
        }


def _unit(costs: Iterable[float]) -> float:
    """Return what the costs are counted in: their divisor if all are whole, so that sums are exact."""
    whole = [int(cost) for cost in costs if cost]
    if whole and all(cost == int(cost) for cost in costs):
        return float(math.gcd(*whole))
    return max(costs, default=1.0) or 1.0


def _meeting(space: Space) -> list[list[str]]:
    """Return groups of quantizers that are joined by products, in order."""
    import networkx

    network: networkx.Graph[str] = networkx.Graph()
    network.add_nodes_from(space.quantizers)
    network.add_edges_from((p.weight, p.activation) for p in space.products if p.activation)
    order = {name: place for place, name in enumerate(space.quantizers)}
    groups = [
        sorted(group, key=order.__getitem__) for group in networkx.connected_components(network)
    ]
    return sorted(groups, key=lambda group: order[group[0]])
