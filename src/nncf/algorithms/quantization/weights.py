# SPDX-License-Identifier: Apache-2.0
"""Quantizers of weights: one per parameter, however many operations use it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from nncf.algorithms.quantization.demands import common_schemes, only_per_tensor
from nncf.algorithms.quantization.hardware import Schemes
from nncf.algorithms.quantization.roles import Roles
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.traits import MULTIPLIES
from nncf.compression.layout import Insert, Skip
from nncf.errors import ModelError
from nncf.graph.address import Point
from nncf.graph.graph import Graph, Operation, Parameter

logger = logging.getLogger("nncf")

_FIRST_LAYERS = frozenset(["convolution", "depthwise_convolution", "deformable_convolution"])


@dataclass(frozen=True)
class WeightSite:
    """The places where one parameter enters operations, and the schemes all of them allow."""

    parameter: Parameter
    operations: tuple[Operation, ...]
    points: tuple[Point, ...]
    schemes: Schemes
    group: int | None = None


def potential_weights(graph: Graph) -> int:
    """Return how many quantizers of weights the graph could have: one per distinct weight."""
    return len({_identity(op, item) for op in graph.operations() for item in op.weights})


def find_weights(
    roles: Roles, embeddings: Mapping[str, tuple[Schemes, int | None]]
) -> tuple[list[WeightSite], list[Skip]]:
    """Return the weights to quantize, and those left alone with the reason.

    ``embeddings`` maps embeddings to the schemes (and unified group) that the readers of their
    output demand of the weight.
    """
    sites: dict[tuple[object, ...], list[WeightSite]] = {}
    skips: list[Skip] = []
    for operation in roles.graph.operations():
        for parameter in operation.weights:
            point = Point(operation.key, "weight", parameter.port)
            excuse = _excuse(roles, operation)
            if excuse is not None:
                skips.append(Skip(str(point), excuse, in_float=not operation.claimed_by))
                continue
            schemes, group = embeddings.get(operation.key) or (None, None)
            schemes = schemes or offered(roles, operation, parameter)
            site = WeightSite(parameter, (operation,), (point,), schemes, group)
            _add(sites.setdefault(_identity(operation, parameter), []), site)
    found = [site for parts in sites.values() for site in parts]
    return found, skips


def offered(roles: Roles, operation: Operation, parameter: Parameter) -> Schemes:
    """Return the schemes for a weight of an operation, best first."""
    schemes = roles.weights.schemes(operation.key, roles.trait(operation.key).weights)
    if parameter.channel_axis is None:
        return only_per_tensor(schemes) or tuple(replace(s, per_channel=False) for s in schemes)
    return schemes


def _identity(operation: Operation, parameter: Parameter) -> tuple[object, ...]:
    # A tensor computed from a parameter is a tensor of its own at each operation.
    place = None if parameter.direct else operation.key
    return (parameter.name, parameter.channel_axis, place)


def _excuse(roles: Roles, operation: Operation) -> str | None:
    if operation.unreached is not None:
        return operation.unreached
    trait = roles.trait(operation.key)
    if trait.behaviour == "opaque" and trait.weights is None:
        return f"{operation.kind} is not quantized on target device {roles.hardware.device}"
    return roles.weight_selection.excuse(operation)


def _add(parts: list[WeightSite], site: WeightSite) -> None:
    """Join the site to one of the same parameter that has a scheme in common."""
    for place, other in enumerate(parts):
        schemes = common_schemes((other.schemes, site.schemes))
        if schemes and (other.group is None or site.group in (None, other.group)):
            parts[place] = WeightSite(
                other.parameter,
                (*other.operations, *site.operations),
                (*other.points, *site.points),
                schemes,
                site.group if other.group is None else other.group,
            )
            return
    parts.append(site)


def to_insert(site: WeightSite, half_range: bool) -> Insert:
    """Return the Insert of a weight; ``half_range`` keeps 8 bits on half of the grid."""
    operations = " and ".join(f"{op.kind} {op.key}" for op in site.operations[:3])
    scheme = finish_weight(site.schemes[0], half_range=half_range)
    shape: tuple[int, ...] = (1,)
    if scheme.per_channel:
        axis = site.parameter.channel_axis
        scheme = replace(scheme, channel_axis=axis)
        sizes = site.parameter.shape
        shape = tuple(size if place == axis else 1 for place, size in enumerate(sizes))
    shared = " and others" if len(site.operations) > 3 else ""
    return Insert(site.points, scheme, shape, reason=f"weight of {operations}{shared}")


def finish_weight(scheme: Scheme, *, half_range: bool) -> Scheme:
    """Return the scheme with the ends of the grid that weights have.

    8-bit weights drop the lowest level, or with ``half_range`` keep 7 bits of their grid.
    """
    half_range = half_range and scheme.bits == 8
    narrow = scheme.bits == 8 and not half_range and scheme.mode == "symmetric"
    return replace(scheme, half_range=half_range, narrow_range=narrow)


def overflowing(roles: Roles, overflow_fix: str) -> frozenset[str]:
    """Return the operations whose 8-bit weights must keep to half of the grid."""
    if overflow_fix == "disable" or not roles.hardware.saturates:
        return frozenset()
    if overflow_fix == "first_layer_only":
        return first_layers(roles.graph)
    # An embedding only looks its weight up; no sum of products can overflow.
    return frozenset(op.key for op in roles.graph.operations() if op.kind.name in MULTIPLIES)


def first_layers(graph: Graph) -> frozenset[str]:
    """Return the convolutions that no other convolution stands before, seen from the inputs."""
    found: set[str] = set()
    waiting = [operation.key for operation in graph.operations("input")]
    seen = set(waiting)
    while waiting:
        key = waiting.pop()
        if graph[key].kind.name in _FIRST_LAYERS:
            found.add(key)
            continue
        fresh = {edge.target for edge in graph.outputs_of(key)} - seen
        seen |= fresh
        waiting.extend(sorted(fresh))
    return frozenset(found)


def check_frozen(sites: Iterable[tuple[WeightSite, int]]) -> None:
    """Warn of frozen weights at 8 bits. Raises ModelError for those with other bits."""
    frozen = [(site, bits) for site, bits in sites if not site.parameter.trainable]
    if not frozen:
        return
    names = ", ".join(dict.fromkeys(site.parameter.name for site, _ in frozen))
    if all(bits == 8 for _, bits in frozen):
        logger.warning(
            "Frozen weights (requires_grad is false) are quantized to 8 bits: %s. "
            "They cannot adapt to it in training.",
            names,
        )
        return
    low = ", ".join(dict.fromkeys(site.parameter.name for site, bits in frozen if bits != 8))
    raise ModelError(
        f"Weights that are frozen (requires_grad is false) are to be quantized to other than "
        f"8 bits, which they cannot adapt to: {low}. Please unfreeze them or put them into "
        '"ignored_scopes".'
    )
