# SPDX-License-Identifier: Apache-2.0
"""Features: which operations of two graphs are compared, and the op that notes what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nncf.compression.layout import Insert, Layout
from nncf.errors import ConfigError
from nncf.graph.address import Point
from nncf.graph.graph import Graph
from nncf.graph.scopes import Scopes

PRIORITY = 20  # behind everything: what the rest of the model sees
WHERE = "knowledge_distillation.features"


@dataclass(frozen=True)
class Tap:
    """An op that passes a tensor unchanged and notes it for the comparison."""

    algorithm: ClassVar[str] = "knowledge_distillation"
    tag: ClassVar[str] = "FEATURE"

    scope: str = ""

    def to_state(self) -> dict[str, Any]:
        return {"scope": self.scope}

    def __str__(self) -> str:
        return "noted for distillation"


def plan_taps(graph: Graph, scopes: Sequence[str], where: str = WHERE) -> Layout:
    """Return one Insert for each scope, at the last operation that it matches.

    Raises ScopeNotFound for a scope without operation, ConfigError for one that has no floating
    point result or is there twice.
    """
    known = Scopes(graph)
    known.match(scopes, where=where)
    inserts: dict[str, Insert] = {}
    for index, scope in enumerate(scopes):
        keys = [key for key in known.find(scope) if feature_shape(graph, key) is not None]
        if not keys:
            raise ConfigError(
                f'{where}[{index}] "{scope}" computes no floating point tensor that the model '
                "goes on with. Name an operation inside the model, such as a convolution or relu."
            )
        insert = Insert(
            (Point(keys[-1], "output"),),
            Tap(scope),
            priority=PRIORITY,
            reason=f"feature {scope}",
        )
        if insert.name in inserts:
            raise ConfigError(
                f'{where}[{index}] "{scope}" and "{inserts[insert.name].op.scope}" are both '  # type: ignore[attr-defined]  # all ops here are Taps
                f"{keys[-1]}. Remove one of them."
            )
        inserts[insert.name] = insert
    return Layout(inserts.values())


def feature_shape(graph: Graph, key: str) -> tuple[int, ...] | None:
    """Return the shape of what an operation computes, None where that is no floating point tensor."""
    if graph[key].kind.name in ("output", "constant", "input"):
        return None
    edges = [edge for edge in graph.outputs_of(key) if edge.output_port == 0]
    return edges[0].shape if edges and edges[0].dtype == "float" else None


def check_shapes(graph: Graph, teacher: Graph, pairs: Sequence[tuple[Insert, Insert]]) -> None:
    """Raise ConfigError where the activations to be compared have different shapes."""
    for index, inserts in enumerate(pairs):
        ours, theirs = (insert.points[0].address for insert in inserts)
        shape, other = feature_shape(graph, ours), feature_shape(teacher, theirs)
        if shape != other:
            raise ConfigError(
                f"{WHERE}[{index}]: {ours} computes the shape {shape}, the teacher's {theirs} "
                f"{other}. Expected equal shapes: choose an operation of the teacher with "
                "teacher_scope."
            )
