# SPDX-License-Identifier: Apache-2.0
"""Placement: which tensors of a model get a quantizer, of which scheme, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nncf.algorithms.quantization.constraints import NOTHING_OPEN, OpenWidths
from nncf.algorithms.quantization.demands import (
    Demand,
    Groups,
    Site,
    common_schemes,
    merge,
    only_per_tensor,
)
from nncf.algorithms.quantization.hardware import Schemes, load
from nncf.algorithms.quantization.propagation import Propagation, execution_order, propagate
from nncf.algorithms.quantization.roles import Roles, assign_roles
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.traits import EMBEDDINGS
from nncf.algorithms.quantization.weights import (
    WeightSite,
    check_frozen,
    find_weights,
    finish_weight,
    offered,
    overflowing,
    potential_weights,
    to_insert,
)
from nncf.compression.layout import Insert, Layout, Skip
from nncf.graph.address import Point
from nncf.graph.graph import Graph

__all__ = ["Placement", "place", "plan", "potential_weights"]

logger = logging.getLogger("nncf")

_RANK = {"input": 0, "weight": 1, "output": 2}


@dataclass(frozen=True)
class Placement:
    """Quantizers with the first choice of scheme, and what else each of them may be.

    ``choices`` has, by name and bits, the scheme that a quantizer may have as well, the first
    choice first; ``weights`` are the weights that got a quantizer.
    """

    layout: Layout
    choices: Mapping[str, Mapping[int, Scheme]]
    weights: tuple[WeightSite, ...]

    def check(self, layout: Layout) -> None:
        """Raise ModelError for frozen weights that get other than 8 bits in ``layout``."""
        bits = {point: _scheme_of(insert).bits for insert in layout for point in insert.points}
        check_frozen((site, bits[site.points[0]]) for site in self.weights)


def plan(
    graph: Graph,
    options: Any,
    *,
    target_device: str = "ANY",
    ignored: Sequence[str] = (),
    target: Sequence[str] | None = None,
) -> Layout:
    """Return the quantizers of a model and, for every operation without one, the reason.

    See ``place``. Raises ModelError for frozen weights with other than 8 bits as well.
    """
    scopes = {"ignored": ignored, "target": target}
    placement = place(graph, options, target_device=target_device, **scopes)
    placement.check(placement.layout)
    return placement.layout


def place(
    graph: Graph,
    options: Any,
    *,
    target_device: str = "ANY",
    ignored: Sequence[str] = (),
    target: Sequence[str] | None = None,
    open_widths: OpenWidths = NOTHING_OPEN,
) -> Placement:
    """Return the quantizers of a model, what else they may be, and where there are none and why.

    ``options`` are QuantizationOptions; ``ignored`` and ``target`` are the top level's scopes
    (the ignored ones add to the algorithm's, the target ones win over them).

    Raises ScopeNotFound for a scope that matches nothing, ConfigError for a scheme that the
    device does not have.
    """
    hardware = load(target_device)
    if target_device == "VPU":
        logger.warning(
            "target_device VPU: convolutions keep padding with zero; the padding value is not "
            "adjusted to the quantizer's grid, and need not be: our grids contain zero."
        )
    roles = assign_roles(graph, options, hardware=hardware, ignored=ignored, target=target)
    roles.activations = replace(roles.activations, open_widths=open_widths)
    roles.weights = replace(roles.weights, open_widths=open_widths)
    found = propagate(
        roles,
        quantize_inputs=bool(getattr(options, "quantize_inputs", True)),
        quantize_outputs=bool(getattr(options, "quantize_outputs", False)),
    )
    sites, embeddings = _give_to_embeddings(roles, found)
    weights, weight_skips = find_weights(roles, embeddings)
    half = overflowing(roles, getattr(options, "overflow_fix", "enable"))
    maker = _Inserts(roles, found.groups, half)
    inserts = maker.build(sites, weights)
    order = {key: number for number, key in enumerate(execution_order(graph))}
    inserts.sort(key=lambda insert: _position(insert, order))
    layout = Layout(inserts, [*_skipped(roles, found, inserts), *weight_skips])
    choices = {insert.name: maker.choices[insert.name] for insert in inserts}
    return Placement(layout, choices, tuple(weights))


def _scheme_of(insert: Insert) -> Scheme:
    """Return the scheme of a quantizer's Insert."""
    assert isinstance(insert.op, Scheme)  # this module makes no others
    return insert.op


def _position(insert: Insert, place: dict[str, int]) -> tuple[int, int, int]:
    point = insert.points[0]
    source = insert.label.partition("|")[0] if insert.label else point.address
    return (place[source], _RANK[point.kind], point.port)


# embeddings ------------------------------------------------------------------------------------


def _give_to_embeddings(
    roles: Roles, found: Propagation
) -> tuple[list[Site], dict[str, tuple[Schemes, int | None]]]:
    """Let the weight of an embedding stand for a quantizer at its output.

    What an embedding looks up is on the grid of its weight already, so a per-tensor scheme that
    suits both makes the second quantizer needless. Returns the remaining sites, and schemes and
    unified group per embedding.
    """
    kept: list[Site] = []
    taken: dict[str, tuple[Schemes, int | None]] = {}
    demands: dict[str, Demand] = {}
    for site in found.sites:
        key = site.tensor[0]
        schemes = _embedding_schemes(roles, key)
        offer = Demand(schemes, site.demand.cause)
        parts = [offer, replace(site.demand, schemes=_as_weight(site.demand.schemes))]
        if key in demands:
            parts.append(demands[key])
        joint = merge(parts, found.groups) if schemes and site.tensor[1] == 0 else None
        if joint is None:
            kept.append(site)
        else:
            demands[key] = joint
            taken[key] = (joint.schemes, joint.group)
    return kept, taken


def _embedding_schemes(roles: Roles, key: str) -> Schemes:
    operation = roles.graph[key]
    weights = operation.weights
    if operation.kind.name not in EMBEDDINGS or not weights or operation.unreached:
        return ()
    if roles.weight_selection.excuse(operation) is not None:
        return ()
    return only_per_tensor(offered(roles, operation, weights[0]))


def _as_weight(schemes: Schemes) -> Schemes:
    return tuple(replace(scheme, weight=True) for scheme in only_per_tensor(schemes))


# inserts ---------------------------------------------------------------------------------------


@dataclass
class _Inserts:
    """Makes Inserts of sites: one per site, or one per unified group."""

    roles: Roles
    groups: Groups
    half: frozenset[str]
    choices: dict[str, dict[int, Scheme]] = field(default_factory=dict)

    def build(self, sites: Sequence[Site], weights: Sequence[WeightSite]) -> list[Insert]:
        together: dict[int, list[Site | WeightSite]] = {}
        inserts: list[Insert] = []
        everything: list[Site | WeightSite] = [*sites, *weights]
        for site in everything:
            group = site.group if isinstance(site, WeightSite) else site.demand.group
            if group is None:
                inserts.append(self._single(site))
            else:
                together.setdefault(self.groups.root(group), []).append(site)
        for members in together.values():
            inserts.extend(self._unified(members))
        return inserts

    def _single(self, site: Site | WeightSite) -> Insert:
        if isinstance(site, WeightSite):
            half = any(operation.key in self.half for operation in site.operations)
            insert, schemes = to_insert(site, half), site.schemes
        else:
            insert, schemes = self._activation(site), site.demand.schemes
        self.choices[insert.name] = _choices(schemes)
        return insert

    def _activation(self, site: Site) -> Insert:
        scheme = site.demand.schemes[0]
        shape: tuple[int, ...] = (1,)
        sizes = site.edges[0].shape
        if scheme.per_channel and len(sizes) > 1:
            axis = self._channel_axis(site)
            scheme = replace(scheme, channel_axis=axis)
            shape = tuple(size if place == axis else 1 for place, size in enumerate(sizes))
        elif scheme.per_channel:
            scheme = replace(scheme, per_channel=False)
        points, label = self._points(site)
        return Insert(points, scheme, shape, reason=str(site.demand.cause), label=label)

    def _channel_axis(self, site: Site) -> int:
        """Return the axis of channels of the tensor, as the first that reads it has it."""
        attributes = self.roles.graph[site.edges[0].target].attributes
        return int(attributes.get("input_channel_axis", 1))

    def _points(self, site: Site) -> tuple[tuple[Point, ...], str]:
        """Return where the quantizer runs, and a name when the first point is not telling."""
        key, port = site.tensor
        source = self.roles.graph[key]
        several = any(edge.output_port for edge in self.roles.graph.outputs_of(key))
        no_output = source.kind.name in ("input", "constant") or source.unreached or several
        if site.whole and not no_output and not any(edge.aliased for edge in site.edges):
            return (Point(key, "output", port),), ""
        readers = tuple(Point(edge.target, "input", edge.input_port) for edge in site.edges)
        is_input = site.whole and source.kind.name == "input"
        return readers, f"{key}|OUTPUT" if is_input else ""

    def _unified(self, members: list[Site | WeightSite]) -> list[Insert]:
        """Return one Insert for all members; more where their schemes have nothing in common."""
        parts: list[tuple[Schemes, list[Site | WeightSite]]] = []
        for site in members:
            schemes = _neutral(site)
            for place, (sofar, sites) in enumerate(parts):
                common = common_schemes((sofar, schemes))
                if common:
                    parts[place] = (common, [*sites, site])
                    break
            else:
                parts.append((schemes, [site]))
        return [self._joined(schemes, sites) for schemes, sites in parts]

    def _joined(self, schemes: Schemes, sites: list[Site | WeightSite]) -> Insert:
        singles = [self._single(_with_schemes(site, schemes)) for site in sites]
        first = singles[0]
        if len(singles) == 1:
            return first
        points = tuple(dict.fromkeys(point for insert in singles for point in insert.points))
        scheme = schemes[0]
        if all(isinstance(site, WeightSite) for site in sites):
            scheme = finish_weight(replace(scheme, weight=True), half_range=False)
        reason = f"{first.reason}; one range for {len(singles)} tensors that meet"
        self.choices[first.name] = _choices(schemes)
        return Insert(points, scheme, reason=reason, label=first.label)


def _choices(schemes: Schemes) -> dict[int, Scheme]:
    """Return the schemes that a quantizer may have in place of the first, one for each width.

    They have the ranges of the first, per channel or not, and its grid where there is a choice.
    """
    first = schemes[0]
    found = {first.bits: first}
    for scheme in sorted(schemes, key=lambda other: other.mode != first.mode):
        if scheme.per_channel == first.per_channel:
            found.setdefault(scheme.bits, scheme)
    return found


def _neutral(site: Site | WeightSite) -> Schemes:
    """Return per-tensor schemes without the mark that tells weights from activations."""
    schemes = site.schemes if isinstance(site, WeightSite) else site.demand.schemes
    return tuple(replace(scheme, weight=False) for scheme in only_per_tensor(schemes) or schemes)


def _with_schemes(site: Site | WeightSite, schemes: Schemes) -> Site | WeightSite:
    if isinstance(site, WeightSite):
        own = tuple(replace(scheme, weight=True) for scheme in schemes)
        return replace(site, schemes=own)
    return replace(site, demand=replace(site.demand, schemes=schemes))


# what was left alone ---------------------------------------------------------------------------


def _skipped(roles: Roles, found: Propagation, inserts: Sequence[Insert]) -> list[Skip]:
    """Return a Skip for every operation without a quantizer of its own or above its inputs.

    An operation of which only the weight is quantized is listed with its input.
    """
    points = [point for insert in inserts for point in insert.points]
    weighted = {point.address for point in points if point.kind == "weight"}
    active = {point.address for point in points if point.kind != "weight"}
    skips = []
    for operation in roles.graph.operations():
        key = operation.key
        if operation.kind.name in ("input", "output", "constant"):
            continue
        # A quantizer at the output of an operation in float is there for its readers only.
        in_float = roles.trait(key).behaviour == "opaque" and not roles.is_member(key)
        if key in active and not in_float:
            continue
        reason = roles.excuse(operation) or found.excuses.get(key)
        if key in roles.blocked:
            reason = roles.activation_selection.excuse(operation)
        only_weight = key in weighted
        if reason is None or (only_weight and not roles.quantizes(operation)):
            continue
        follows = roles.is_member(key) or roles.trait(key).behaviour == "passes"
        where = f"{key}|INPUT0" if only_weight else key
        stays = operation.unreached is not None or not (follows or operation.claimed_by)
        skips.append(Skip(where, reason, in_float=stays))
    return skips
