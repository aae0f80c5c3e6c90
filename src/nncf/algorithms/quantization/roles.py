# SPDX-License-Identifier: Apache-2.0
"""Roles: what placement does with each operation of one graph under one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nncf.algorithms.quantization.constraints import Constraints, read_constraints
from nncf.algorithms.quantization.ends import end_layers
from nncf.algorithms.quantization.hardware import Hardware
from nncf.algorithms.quantization.traits import Trait, trait_of
from nncf.errors import ConfigError
from nncf.graph.graph import Graph, Operation
from nncf.graph.patterns import ACTIVATIONS, Fusion, describe, find_constants, fuse
from nncf.graph.scopes import Scopes


@dataclass(frozen=True)
class Selection:
    """Operations that a group (weights or activations) leaves out.

    ``ignored`` maps keys to the scope that ignores them; ``targets`` None means all.
    """

    ignored: Mapping[str, str]
    targets: frozenset[str] | None

    def excuse(self, operation: Operation) -> str | None:
        """Return why the operation is left out, None when it is not."""
        if operation.key in self.ignored:
            return f'ignored by the scope "{self.ignored[operation.key]}"'
        if self.targets is not None and operation.key not in self.targets:
            return "not among the target_scopes"
        if "quantization" in operation.ignored_algorithms:
            return "its module is registered as ignored by quantization"
        if operation.claimed_by:
            return f"left to {operation.claimed_by}"
        return None


@dataclass
class Roles:
    """Everything known about the operations before any quantizer moves.

    ``unified`` numbers the user's unified-scale lists per operation. ``blocked`` maps
    operations whose output must not be quantized to the reason.
    """

    graph: Graph
    hardware: Hardware
    activations: Constraints
    weights: Constraints
    activation_selection: Selection
    weight_selection: Selection
    fusion: Fusion
    constants: frozenset[str]
    traits: dict[str, Trait]
    unified: dict[str, int]
    blocked: dict[str, str] = field(default_factory=dict)

    def trait(self, key: str) -> Trait:
        return self.traits[key]

    def is_member(self, key: str) -> bool:
        """Tell whether the operation is fused into a chain that starts before it."""
        return not self.fusion.is_head(key)

    def quantizes(self, operation: Operation) -> bool:
        """Tell whether the operation's inputs would be quantized, scopes aside."""
        return self.traits[operation.key].behaviour == "quantizes"

    def excuse(self, operation: Operation) -> str | None:
        """Return why the inputs of an operation are not quantized, None when they are."""
        key = operation.key
        if operation.unreached is not None:
            return operation.unreached
        if self.is_member(key):
            chain = self.fusion.chain_of[key]
            return f"computed together with {chain.head} ({describe(chain, self.graph)})"
        if key in self.fusion.preprocessing:
            return "prepares a model input; the quantizer stands after it"
        if not self.quantizes(operation):
            return self._not_quantized(operation)
        return self.activation_selection.excuse(operation)

    def _not_quantized(self, operation: Operation) -> str:
        kind = operation.kind.name
        label = self.fusion.label(operation.key)
        if label is not None:
            return f"part of a composite {label.replace('_', ' ')}, which is not quantized"
        if self.traits[operation.key].behaviour == "passes":
            return "only moves values; quantizers stand before or after it as its readers need"
        if kind == "unknown":
            return f"nncf does not know what {operation.function} computes"
        return f"{kind} is not quantized on target device {self.hardware.device}"


def assign_roles(
    graph: Graph,
    options: Any,
    *,
    hardware: Hardware,
    ignored: Sequence[str],
    target: Sequence[str] | None,
) -> Roles:
    """Return the roles of all operations. Raises ScopeNotFound and ConfigError."""
    scopes = Scopes(graph)
    constants = find_constants(graph)
    fusion = fuse(graph, constants)
    reader = _SelectionReader(scopes, options, ignored, target)
    traits = {operation.key: trait_of(operation, hardware) for operation in graph.operations()}
    for key, trait in traits.items():
        if fusion.label(key) is not None:
            traits[key] = _composite_trait(fusion, graph[key], trait)
    ends = end_layers(graph)
    roles = Roles(
        graph=graph,
        hardware=hardware,
        activations=read_constraints("activations", options, hardware, scopes, ends=ends),
        weights=read_constraints("weights", options, hardware, scopes, ends=ends),
        activation_selection=reader.read("activations"),
        weight_selection=reader.read("weights"),
        fusion=fusion,
        constants=constants,
        traits=traits,
        unified=_read_unified(options, scopes),
    )
    _check_unified(roles)
    _block(roles)
    return roles


def _composite_trait(fusion: Fusion, operation: Operation, trait: Trait) -> Trait:
    if fusion.label(operation.key) == "l2_norm" and trait.behaviour == "quantizes":
        return trait
    return Trait("opaque")


class _SelectionReader:
    """Reads the scopes of a group: the top level's, the algorithm's and its own."""

    def __init__(
        self, scopes: Scopes, options: Any, ignored: Sequence[str], target: Sequence[str] | None
    ) -> None:
        self.scopes = scopes
        self.options = options
        self.validate = bool(getattr(options, "validate_scopes", True))
        self.top_ignored = self._match(ignored, "ignored_scopes")
        own = getattr(options, "ignored_scopes", None) or ()
        self.own_ignored = self._match(own, "quantization.ignored_scopes")
        self.top_target = self._targets(target, "target_scopes")
        own_target = getattr(options, "target_scopes", None)
        self.own_target = self._targets(own_target, "quantization.target_scopes")

    def read(self, group: str) -> Selection:
        section = getattr(self.options, group, None)
        validate = self.validate and bool(getattr(section, "validate_scopes", True))
        listed = getattr(section, "ignored_scopes", None) or ()
        where = f"quantization.{group}.ignored_scopes"
        ignored = self.scopes.match(listed, where=where, validate=validate)
        wanted = getattr(section, "target_scopes", None)
        target = self._targets(wanted, f"quantization.{group}.target_scopes", validate=validate)
        # The top level's targets win; below it the narrower list does.
        targets = [t for t in (self.top_target, target, self.own_target) if t is not None]
        return Selection(
            {**ignored, **self.own_ignored, **self.top_ignored}, targets[0] if targets else None
        )

    def _match(self, scopes: Sequence[str], where: str) -> dict[str, str]:
        return self.scopes.match(scopes, where=where, validate=self.validate)

    def _targets(
        self, scopes: Sequence[str] | None, where: str, *, validate: bool | None = None
    ) -> frozenset[str] | None:
        if not scopes:
            return None
        validate = self.validate if validate is None else validate
        return frozenset(self.scopes.match(scopes, where=where, validate=validate))


def _read_unified(options: Any, scopes: Scopes) -> dict[str, int]:
    section = getattr(options, "activations", None)
    found: dict[str, int] = {}
    for number, names in enumerate(getattr(section, "unified_scale_ops", None) or ()):
        where = f"quantization.activations.unified_scale_ops[{number}]"
        for key in scopes.match(names, where=where):
            if found.setdefault(key, number) != number:
                raise ConfigError(f"{where}: {key} is already in another list. Join the lists.")
    return found


def _check_unified(roles: Roles) -> None:
    for key, number in roles.unified.items():
        excuse = roles.excuse(roles.graph[key])
        if excuse is not None:
            raise ConfigError(
                f"quantization.activations.unified_scale_ops[{number}]: {key} has no quantizer at "
                f"its inputs to be shared ({excuse}). Name operations whose inputs are quantized."
            )


def _block(roles: Roles) -> None:
    """Note the outputs that stay in float.

    To ignore an operation whose inputs or weight are quantized means those. Other operations
    (relu, max_pool…) only have an output: no quantizer stands there, none moves past them.
    """
    for key, scope in roles.activation_selection.ignored.items():
        operation = roles.graph[key]
        fused_activation = roles.is_member(key) and operation.kind.name in ACTIVATIONS
        if (roles.quantizes(operation) or operation.weights) and not fused_activation:
            continue
        if roles.is_member(key) and operation.kind.name == "batch_norm":
            continue
        roles.blocked[key] = f'{key} is ignored by the scope "{scope}"'
