# SPDX-License-Identifier: Apache-2.0
"""Groups of channels that are ranked together, and what may be pruned at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np

from nncf.graph.channels import NO_UNIT, Channels, Ids, Producer, find_channels
from nncf.graph.graph import Graph, Operation
from nncf.graph.scopes import Scopes


@dataclass(frozen=True)
class PruningGroup:
    """Channels of one or more layers of which any may go, each with all that hangs on it.

    ``units`` are the numbers of what can be removed, in the order of the first layer's filters;
    ``producers`` the layers that make the channels; ``members`` all (parameter or buffer, axis)
    that become shorter. Prints as a sentence.
    """

    number: int
    units: Ids
    producers: tuple[Producer, ...]
    members: tuple[tuple[str, int], ...]
    channels: int
    stays: int

    @property
    def name(self) -> str:
        return _layer(self.producers[0].parameter)

    @property
    def key(self) -> str:
        """What tells the group from all others: the parameter of its first layer."""
        return self.producers[0].parameter

    @property
    def width(self) -> int:
        """How many channels of the first layer go with one unit."""
        return max(1, (self.channels - self.stays) // len(self.units))

    def keepable(self, count: float, multiple: int) -> int:
        """Return the least number of units, ``count`` or more, that keeps a multiple of channels.

        One unit is kept at least, all where no smaller number does.
        """
        for kept in range(max(int(np.ceil(count - 1e-9)), 1), len(self.units)):
            if (self.stays + kept * self.width) % multiple == 0:
                return kept
        return len(self.units)

    def __str__(self) -> str:
        layers = _listed([_layer(p.parameter) for p in self.producers])
        shortened = [f"{name} (axis {axis})" for name, axis in self.members]
        return (
            f"Removing one of the {len(self.units)} channels of group {self.number} takes a filter "
            f"of {layers}, and shortens {_listed(shortened)}."
        )


def _layer(parameter: str) -> str:
    """Return the layer in a parameter's name: ``conv1.weight`` in PyTorch, ``conv1/kernel`` in Keras."""
    for mark in "./":
        if mark in parameter:
            return parameter.rpartition(mark)[0]
    return parameter


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"


@dataclass(frozen=True)
class Limit:
    """What must be left of an axis: a ``multiple`` of channels, or all; not all but one if ``whole``.

    What normalises over an axis could not be told of a single missing channel by its statistics.
    """

    units: Ids
    multiple: int = 1
    whole: bool = False


@dataclass(frozen=True)
class Grouping:
    """All pruning groups of a model, and for each layer that is not pruned the reason."""

    channels: Channels
    groups: tuple[PruningGroup, ...]
    excluded: Mapping[str, str]

    def limits(self, multiple: int) -> tuple[Limit, ...]:
        """Return what must be left of every axis that groups shorten."""
        channels = self.channels
        made = {
            channels.units_of(p.ids).tobytes() for group in self.groups for p in group.producers
        }
        normalised = set()
        for need in channels.labels.needs:
            edge = next(
                e for e in channels.graph.inputs_of(need.operation) if e.input_port == need.port
            )
            axes = channels.value_axes(edge.source, edge.output_port)
            if need.kind == "statistics" and need.axis in axes:
                normalised.add(axes[need.axis].tobytes())
        return tuple(
            Limit(units, multiple if units.tobytes() in made else 1, units.tobytes() in normalised)
            for units in channels.axes()
        )

    def __iter__(self) -> Iterator[PruningGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __repr__(self) -> str:
        rows = [f"{len(self.groups)} pruning groups", *map(str, self.groups)]
        rows += [f"{key}: not pruned, {reason}" for key, reason in self.excluded.items()]
        return "\n".join(rows)


def find_groups(graph: Graph, options: Any, root: Any) -> Grouping:
    """Return the groups of a graph under the options of filter pruning.

    Raises ScopeNotFound for a scope that matches nothing.
    """
    channels = find_channels(graph, list(_pinned(graph, options, root)))
    producers = [p for p in channels.labels.producers if (channels.units_of(p.ids) >= 0).any()]
    groups = []
    members = _members(channels)
    for number, component in enumerate(_components(channels, producers)):
        units = _ordered_units(channels, component)
        found = sorted(dict.fromkeys(m for unit in units for m in members.get(int(unit), ())))
        first = channels.units_of(component[0].ids)
        stays = int((first == NO_UNIT).sum())
        groups.append(
            PruningGroup(number, units, tuple(component), tuple(found), len(first), stays)
        )
    excluded = {}
    for producer in channels.labels.producers:
        if (channels.units_of(producer.ids) == NO_UNIT).all():
            reason = channels.reason_of(producer.ids)
            excluded[producer.operation] = _told(reason)
    return Grouping(channels, tuple(groups), excluded)


def _told(reason: tuple[str, str] | None) -> str:
    return f"{reason[1]} ({reason[0]})" if reason else "it has no channels of its own"


def _components(channels: Channels, producers: Sequence[Producer]) -> list[list[Producer]]:
    """Join layers that share units, in order of execution."""
    network = networkx.Graph()
    for index, producer in enumerate(producers):
        units = channels.units_of(producer.ids)
        network.add_edges_from((f"layer {index}", int(u)) for u in np.unique(units[units >= 0]))
    found = []
    for component in networkx.connected_components(network):
        places = sorted(int(str(n)[6:]) for n in component if isinstance(n, str))
        found.append(places)
    return [[producers[place] for place in places] for places in sorted(found)]


def _ordered_units(channels: Channels, producers: Sequence[Producer]) -> Ids:
    units = np.concatenate([channels.units_of(producer.ids) for producer in producers])
    units = units[units >= 0]
    _, first = np.unique(units, return_index=True)
    return units[np.sort(first)]


def _members(channels: Channels) -> dict[int, list[tuple[str, int]]]:
    found: dict[int, list[tuple[str, int]]] = {}
    for name, axes in channels.tensor_axes().items():
        for axis, units in axes.items():
            for unit in np.unique(units[units >= 0]):
                found.setdefault(int(unit), []).append((name, axis))
    return found


# --- what the options leave alone ----------------------------------------------------------------

_CONVOLUTIONS = frozenset(["convolution", "depthwise_convolution", "transposed_convolution"])


def _pinned(graph: Graph, options: Any, root: Any) -> Iterator[tuple[str, str]]:
    """Yield (operation, reason) for every layer that the configuration leaves alone."""
    scopes = Scopes(graph)
    validate = options.validate_scopes
    ignored = scopes.match(root.ignored_scopes, validate=validate)
    ignored |= scopes.match(
        options.ignored_scopes, where="filter_pruning.ignored_scopes", validate=validate
    )
    targets = root.target_scopes if root.target_scopes is not None else options.target_scopes
    chosen = (
        None if targets is None else scopes.match(targets, where="target_scopes", validate=validate)
    )
    first = set() if options.params.prune_first_conv else _first_convolutions(graph)
    for operation in graph.operations():
        if not operation.parameters:
            continue
        if operation.key in ignored:
            yield operation.key, f'ignored by the scope "{ignored[operation.key]}"'
        elif chosen is not None and operation.key not in chosen:
            yield operation.key, "not among the target_scopes"
        elif "filter_pruning" in operation.ignored_algorithms:
            yield operation.key, "its module is registered as ignored by filter_pruning"
        elif operation.key in first:
            yield operation.key, 'it is a first convolution ("prune_first_conv")'
        elif not options.params.prune_downsample_convs and _is_strided(operation):
            yield operation.key, 'it has a stride ("prune_downsample_convs")'


def _is_strided(operation: Operation) -> bool:
    strides = operation.attributes.get("stride", ())
    transposed = operation.kind.name == "transposed_convolution"
    return not transposed and any(stride != 1 for stride in strides)


def _first_convolutions(graph: Graph) -> set[str]:
    """Return the convolutions that a model input reaches without passing another one."""
    found: set[str] = set()
    waiting = [operation.key for operation in graph.operations("input")]
    seen = set(waiting)
    while waiting:
        for edge in graph.outputs_of(waiting.pop()):
            if edge.target in seen:
                continue
            seen.add(edge.target)
            if graph[edge.target].kind.name in _CONVOLUTIONS:
                found.add(edge.target)
            elif graph[edge.target].kind.name != "linear":
                waiting.append(edge.target)
    return found
