# SPDX-License-Identifier: Apache-2.0
"""Sites: the points of a layout resolved to calls of functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nncf.compression.layout import Layout
from nncf.graph.address import Point
from nncf.graph.graph import Graph


@dataclass
class Site:
    """What runs at one operation: op names by input port, and by output port.

    ``written`` are the ports that the operation writes into, ``overwritten`` those that somebody
    writes into, it or a later one.
    """

    before: dict[int, list[str]] = field(default_factory=dict)
    after: dict[int, list[str]] = field(default_factory=dict)
    written: frozenset[int] = frozenset()
    overwritten: frozenset[int] = frozenset()


def sites_of(layout: Layout, graph: Graph) -> dict[str, Site]:
    """Resolve the points of a layout to calls of functions.

    An output point is resolved to the inputs of its consumers where no call can be intercepted
    (model inputs) or where a consumer reads the tensor behind an in-place operation's back.
    """
    sites: dict[str, Site] = {}
    for insert in layout:
        for point in insert.points:
            for actual in _actual_points(point, graph):
                site = sites.setdefault(actual.address, Site())
                ports = site.after if actual.kind == "output" else site.before
                names = ports.setdefault(actual.port, [])
                if insert.name not in names:
                    names.append(insert.name)
    return sites


def _actual_points(point: Point, graph: Graph) -> Iterable[Point]:
    if point.kind != "output" or point.address not in graph:
        return [point]
    edges = [e for e in graph.outputs_of(point.address) if e.output_port == point.port]
    readers = [edge for edge in edges if graph[edge.target].kind.name != "output"]
    callable_source = graph[point.address].kind.name not in ("input", "constant")
    if callable_source and not (readers and any(edge.aliased for edge in edges)):
        return [point]
    edges = readers or edges
    return [Point(edge.target, "input", edge.input_port) for edge in edges]


def baked_parameters(layout: Layout, graph: Graph) -> dict[str, tuple[str, ...]]:
    """Return, by Insert name, the parameters that strip may overwrite with compressed values.

    All uses of such a parameter read it directly and go through the same ops in the same order.
    """
    chains: dict[Point, tuple[str, ...]] = {}
    for insert in layout:
        for point in insert.points:
            chains[point] = (*chains.get(point, ()), insert.name)
    uses: dict[str, set[tuple[str, ...]]] = {}
    for operation in graph.operations():
        for parameter in operation.parameters:
            point = Point(operation.key, "weight", parameter.port)
            chain = chains.get(point, ()) if parameter.direct else ()
            uses.setdefault(parameter.name, set()).add(chain)
    found: dict[str, tuple[str, ...]] = {}
    for parameter_name, different in uses.items():
        if len(different) == 1:
            for name in next(iter(different)):
                found[name] = (*found.get(name, ()), parameter_name)
    return found


def read_parameters(layout: Layout, graph: Graph) -> dict[str, str]:
    """Return, by Insert name, the parameter that the first point reads as it is, where it does."""
    found: dict[str, str] = {}
    for insert in layout:
        point = insert.points[0]
        if point.kind == "weight":
            parameters = graph[point.address].parameters
            read = {p.port: p.name for p in parameters if p.direct}
            if point.port in read:
                found[insert.name] = read[point.port]
    return found


def spent_inserts(
    layout: Layout, graph: Graph, baked: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """Return the names of Inserts that have nothing left to do once their parameters are baked."""
    written = {
        (Point(operation.key, "weight", parameter.port), parameter.name)
        for operation in graph.operations()
        for parameter in operation.parameters
    }
    return frozenset(
        insert.name
        for insert in layout
        if all(
            any((point, name) in written for name in baked.get(insert.name, ()))
            for point in insert.points
        )
    )
