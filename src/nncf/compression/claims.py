# SPDX-License-Identifier: Apache-2.0
"""Claims: some algorithms decide all about the values of a layer, and others have to know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from nncf.compression.algorithm import Algorithm
from nncf.compression.layout import Layout
from nncf.errors import ConfigError
from nncf.graph.graph import Graph

_NAMED = 3
"""Operations named in an error."""


def in_order(chosen: Iterable[Algorithm]) -> list[Algorithm]:
    """Return the algorithms in the order of planning and initialisation: claims come first."""
    return sorted(chosen, key=lambda algorithm: not algorithm.claims_values)


def plan_together(chosen: Sequence[Algorithm], graph: Graph) -> dict[str, Layout]:
    """Return the layout of each algorithm by its name.

    Operations whose weights one of them claims are marked in the graph that the others see.
    Raises ConfigError when one has planned to change a claimed weight all the same.
    """
    claims: dict[str, str] = {}
    plans: dict[str, Layout] = {}
    for algorithm in in_order(chosen):
        plan = algorithm.plan(_marked(graph, claims))
        if algorithm.claims_values:
            claims |= dict.fromkeys(_weighted(plan), algorithm.name)
        elif algorithm.changes_values:
            _refuse(algorithm.name, {key: claims[key] for key in _weighted(plan) if key in claims})
        plans[algorithm.name] = plan
    return {algorithm.name: plans[algorithm.name] for algorithm in chosen}


def _weighted(plan: Layout) -> list[str]:
    """Return the operations of whose weights a layout changes the values."""
    points = [point for insert in plan for point in insert.points if point.kind == "weight"]
    return list(dict.fromkeys(point.address for point in points))


def _marked(graph: Graph, claims: Mapping[str, str]) -> Graph:
    if not claims:
        return graph
    marked = graph.unite(Graph())
    for key, name in claims.items():
        marked.add_operation(replace(graph[key], claimed_by=name))
    return marked


def _refuse(name: str, overlap: Mapping[str, str]) -> None:
    if not overlap:
        return
    listed = ", ".join(f'"{key}"' for key in list(overlap)[:_NAMED])
    more = f" and {len(overlap) - _NAMED} more" if len(overlap) > _NAMED else ""
    other = next(iter(overlap.values()))
    raise ConfigError(
        f'"{name}" and "{other}" both act on the weights of {listed}{more}, and what one decides '
        "the other would undo. Put these operations into the ignored_scopes of one of the two."
    )
