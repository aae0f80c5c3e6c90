# SPDX-License-Identifier: Apache-2.0
"""Which weights an algorithm compresses by scopes: each parameter once, however many use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nncf.compression.layout import Layout, Skip
from nncf.errors import ModelError
from nncf.graph.address import Point
from nncf.graph.graph import Graph, Operation, Parameter
from nncf.graph.scopes import Scopes


@dataclass(frozen=True)
class PlacedWeight:
    """A parameter to be compressed, and the points where operations read it."""

    parameter: Parameter
    operations: tuple[Operation, ...]
    points: tuple[Point, ...]

    @property
    def reason(self) -> str:
        """Say for a reader of the Layout whose weight it is."""
        named = " and ".join(f"{op.kind} {op.key}" for op in self.operations[:3])
        return f"weight of {named}" + (" and others" if len(self.operations) > 3 else "")


def find_weights(
    graph: Graph, algorithm: str, options: Any, root: Any
) -> tuple[list[PlacedWeight], list[Skip]]:
    """Return the weights that an algorithm takes, and those it leaves alone with the reason.

    ``options`` and ``root`` are the algorithm's and the whole configuration's, both with scopes.
    Raises ScopeNotFound.
    """
    excuse = _Excuses(graph, algorithm, options, root)
    found: dict[str, PlacedWeight] = {}
    skips: list[Skip] = []
    for operation in graph.operations():
        for parameter in operation.weights:
            point = Point(operation.key, "weight", parameter.port)
            reason = excuse(operation, parameter)
            if reason is not None:
                skips.append(Skip(str(point), reason))
                continue
            before = found.get(parameter.name, PlacedWeight(parameter, (), ()))
            found[parameter.name] = PlacedWeight(
                before.parameter, (*before.operations, operation), (*before.points, point)
            )
    return list(found.values()), skips


class _Excuses:
    """Knows why a weight is left alone."""

    def __init__(self, graph: Graph, algorithm: str, options: Any, root: Any) -> None:
        self._algorithm = algorithm
        scopes, validate = Scopes(graph), bool(options.validate_scopes)
        own, top = options.ignored_scopes, root.ignored_scopes
        where = f"{algorithm}.ignored_scopes"
        self._ignored = {
            **scopes.match(own, where=where, validate=validate),
            **scopes.match(top, where="ignored_scopes", validate=validate),
        }
        # The targets at the top level win.
        wanted, where = root.target_scopes, "target_scopes"
        if not wanted:
            wanted, where = options.target_scopes, f"{algorithm}.target_scopes"
        self._targets = scopes.match(wanted, where=where, validate=validate) if wanted else None

    def __call__(self, operation: Operation, parameter: Parameter) -> str | None:
        if operation.unreached is not None:
            return operation.unreached
        if operation.key in self._ignored:
            return f'ignored by the scope "{self._ignored[operation.key]}"'
        if self._targets is not None and operation.key not in self._targets:
            return "not among the target_scopes"
        if self._algorithm in operation.ignored_algorithms:
            return f"its module is registered as ignored by {self._algorithm}"
        if not parameter.direct:
            return (
                f"its weight is computed from {parameter.name} in the forward; {self._algorithm} "
                "takes only weights that are parameters themselves"
            )
        return None


def refuse_frozen(weights: Iterable[PlacedWeight], algorithm: str) -> None:
    """Raise ModelError when a weight does not train: it could not adapt to its compression."""
    frozen = [item.parameter.name for item in weights if not item.parameter.trainable]
    if frozen:
        raise ModelError(
            f"{algorithm} cannot compress weights that are frozen (requires_grad is false), since "
            f"they could not adapt to it: {', '.join(frozen)}. Please unfreeze them or put their "
            'layers into "ignored_scopes".'
        )


def parameter_names(layout: Layout, graph: Graph) -> Mapping[str, str]:
    """Return the name of the parameter by Insert name."""
    found = {}
    for insert in layout:
        point = insert.points[0]
        at = {p.port: p.name for p in graph[point.address].parameters}
        found[insert.name] = at[point.port]
    return found


def inserts_at(layout: Layout, keys: Sequence[str] | Mapping[str, str]) -> list[str]:
    """Return the names of the Inserts that run at one of the operations ``keys``."""
    return [
        insert.name for insert in layout if any(point.address in keys for point in insert.points)
    ]
