# SPDX-License-Identifier: Apache-2.0
"""Which channels of a model's tensors can only be removed together.

Every axis of every parameter gets a label for each index, and every tensor between operations
the labels of its axes: an axis without labels (batch, height, time) is never shortened.
Operations tie labels: an addition ties index i of one operand with index i of the other, a
convolution ties its weight's input axis with the channels of its input, a concatenation strings
labels together, a reshape repeats or tiles them (``channel_rules.py`` has them all). Labels that
are tied form a unit: its slices of all parameters are removed at once or not at all. What an
operation cannot do without is pinned, with the reason.

An axis that a reshape splits, ``[C] → [heads, C / heads]``, stays rectangular only if one of the
new axes is shortened at all places of the others. Which one is a choice; so it is whether a
grouped convolution loses whole groups or the same channels of each. Choices are tried, and the
one that leaves the most units is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.graph.graph import Edge, Graph, Operation

Ids = NDArray[np.int64]
Axes = list[Ids | None]
"""Labels of a tensor's axes, None for an axis that keeps its length."""

NO_UNIT = -1


@dataclass(frozen=True)
class Value:
    """A tensor that enters an operation: its shape and the labels of its axes.

    ``open`` is False for what cannot be shortened: constants, and tensors computed from
    parameters alone.
    """

    shape: tuple[int, ...]
    axes: Axes
    open: bool = True

    @property
    def is_labelled(self) -> bool:
        return any(ids is not None for ids in self.axes)


@dataclass(frozen=True)
class Producer:
    """The axis of a parameter from which an operation makes channels: filters of a convolution."""

    operation: str
    parameter: str
    axis: int
    ids: Ids


@dataclass(frozen=True)
class Need:
    """A place where removed channels must not be seen before they are removed.

    ``kind`` "zero": input ``port`` of the operation needs zeros there (it sums over ``axis``);
    "statistics": it normalises over ``axis`` and needs values that leave mean and variance (or
    the mean square, "mean_square") of the others; "mean": only their mean and what is largest and
    smallest matters.
    """

    operation: str
    port: int
    axis: int
    kind: str


@dataclass
class Choice:
    """An alternative that the labelling has met: ``watched`` shows what the taken option left."""

    options: int
    taken: int
    watched: Ids


@dataclass
class Labels:
    """The labels of one pass over a graph, with what ties and pins them."""

    taken: dict[str, int] = field(default_factory=dict)
    size: int = 0
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    pins: list[tuple[Ids, str, str]] = field(default_factory=list)
    tensors: dict[tuple[str, int], Ids] = field(default_factory=dict)
    values: dict[tuple[str, int], Axes] = field(default_factory=dict)
    producers: list[Producer] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)
    whole_groups: set[str] = field(default_factory=set)
    static: set[int] = field(default_factory=set)
    loose: dict[int, Ids] = field(default_factory=dict)

    def fresh(self, length: int) -> Ids:
        """Return new labels for an axis."""
        self.size += length
        return np.arange(self.size - length, self.size, dtype=np.int64)

    def constant(self, length: int, operation: str) -> Ids:
        """Return labels of an axis that keeps its length, whatever the model's input."""
        ids = self.fresh(length)
        self.static.update(ids.tolist())
        self.pin(ids, operation, "it is the other part of an axis that is split")
        return ids

    def is_constant(self, ids: Ids) -> bool:
        return int(ids[0]) in self.static

    def loosen(self, ids: Ids) -> Ids:
        """Return the labels of an axis into which others of length 1, longer next time, may go."""
        found = ids.copy()
        self.loose[id(found)] = found
        return found

    def is_closed(self, ids: Ids) -> bool:
        """Tell whether an axis has nothing but these channels, whatever the model's input."""
        return id(ids) not in self.loose and len(np.unique(ids)) == len(ids)

    def of_tensor(self, name: str, axis: int, length: int) -> Ids:
        """Return the labels of one axis of a parameter or buffer, the same at every use."""
        if (name, axis) not in self.tensors:
            self.tensors[name, axis] = self.fresh(length)
        return self.tensors[name, axis]

    def tie(self, first: Ids, second: Ids) -> None:
        self.ties.append((first, second))

    def tie_all(self, grid: Ids, axis: int) -> Ids:
        """Tie what differs along one axis of an array of labels; return one of each."""
        first = np.take(grid, [0], axis=axis)
        if grid.shape[axis] > 1:
            self.tie(np.broadcast_to(first, grid.shape).ravel(), grid.ravel())
        kept: Ids = np.take(first, 0, axis=axis)
        return kept

    def pin(self, ids: Ids | None, operation: str, reason: str) -> None:
        """Note that none of these may be removed."""
        if ids is not None and ids.size:
            self.pins.append((ids.ravel(), operation, reason))

    def pin_value(self, value: Value, operation: str, reason: str) -> None:
        for ids in value.axes:
            self.pin(ids, operation, reason)

    def choose(self, key: str, options: int) -> int:
        """Return which of several options to take at this place."""
        return min(self.taken.get(key, 0), options - 1)

    def note_choice(self, key: str, options: int, watched: Ids) -> None:
        self.choices[key] = Choice(options, self.choose(key, options), watched.ravel())

    def inputs(self, operation: Operation, graph: Graph) -> dict[int, Value]:
        """Return the tensors that enter an operation, by port."""
        shapes = operation.attributes.get("input_shapes", ())
        edges = {edge.input_port: edge for edge in graph.inputs_of(operation.key)}
        parameters = {parameter.port: parameter for parameter in operation.parameters}
        buffers = {buffer.port: buffer for buffer in operation.buffers}
        found: dict[int, Value] = {}
        for port, shape in enumerate(shapes):
            none: Axes = [None] * len(shape)
            if port in parameters:
                parameter = parameters[port]
                found[port] = self._named(parameter.name, parameter.own_axes(), tuple(shape))
            elif port in edges:
                found[port] = Value(shape, self._axes_of(edges[port], len(shape)))
            elif port in buffers:
                found[port] = self._named(buffers[port].name, buffers[port].axes, tuple(shape))
            else:
                found[port] = Value(shape, none, open=False)
        return found

    def _axes_of(self, edge: Edge, rank: int) -> Axes:
        axes = self.values.get((edge.source, edge.output_port), [None] * rank)
        if len(axes) == rank:
            return axes
        for ids in axes:
            self.pin(ids, edge.target, "it is seen with another shape than it was made with")
        return [None] * rank

    def _named(self, name: str, axes: Sequence[int | None], shape: tuple[int, ...]) -> Value:
        """Return the tensor that a parameter or buffer is, or moves have made of it."""
        if len(axes) != len(shape):
            return Value(shape, [None] * len(shape), open=False)
        named = [
            None if axis is None else self.of_tensor(name, axis, length)
            for axis, length in zip(axes, shape, strict=True)
        ]
        return Value(shape, named)


class Channels:
    """The solved labels of a graph: units, and where they are.

    ``units_of(ids)`` gives, for labels, the number of their unit, ``NO_UNIT`` where they stay;
    numbers are below ``count``.
    """

    def __init__(self, labels: Labels, graph: Graph) -> None:
        self.labels = labels
        self.graph = graph
        component = _components(labels.size, labels.ties)
        count = int(component.max()) + 1 if labels.size else 0
        self.reasons: dict[int, tuple[str, str]] = {}
        for ids, operation, reason in labels.pins:
            for unit in np.unique(component[ids]):
                self.reasons.setdefault(int(unit), (operation, reason))
        pinned = np.ones(count, dtype=bool)  # what no operation makes stays: kernel sizes, tokens
        for producer in labels.producers:
            pinned[component[producer.ids]] = False
        pinned[list(self.reasons)] = True
        self.count = count
        self._component = component
        self._made = np.zeros(count, dtype=bool)
        for producer in labels.producers:
            self._made[component[producer.ids]] = True
        self._units = np.where(pinned[component], NO_UNIT, component) if labels.size else component

    def units_of(self, ids: Ids) -> Ids:
        found: Ids = self._units[ids]
        return found

    def reason_of(self, ids: Ids) -> tuple[str, str] | None:
        """Return (operation, reason) of the first pin among these labels, None when there is none."""
        found = (self.reasons.get(int(unit)) for unit in np.unique(self._component[ids]))
        return next((reason for reason in found if reason is not None), None)

    def tensor_axes(self) -> dict[str, dict[int, Ids]]:
        """Return, for every parameter and buffer that can be shortened, its units by axis."""
        found: dict[str, dict[int, Ids]] = {}
        for (name, axis), ids in self.labels.tensors.items():
            units = self.units_of(ids)
            if (units != NO_UNIT).any():
                found.setdefault(name, {})[axis] = units
        return found

    def axes(self) -> list[Ids]:
        """Return the units along every axis, of parameters and tensors, that can be shortened."""
        found = [units for axes in self.tensor_axes().values() for units in axes.values()]
        for key, port in self.labels.values:
            found.extend(self.value_axes(key, port).values())
        return list({units.tobytes(): units for units in found}.values())

    def value_axes(self, key: str, port: int = 0) -> dict[int, Ids]:
        """Return the units along those axes of an operation's output that can be shortened."""
        axes = self.value_labels(key, port)
        found = {axis: self.units_of(ids) for axis, ids in axes.items()}
        return {axis: units for axis, units in found.items() if (units != NO_UNIT).any()}

    def value_labels(self, key: str, port: int = 0) -> dict[int, Ids]:
        """Return the labels along those axes of an operation's output that have any."""
        axes = self.labels.values.get((key, port), [])
        return {axis: ids for axis, ids in enumerate(axes) if ids is not None}

    def are_made(self, ids: Ids) -> bool:
        """Tell whether these are channels: operations make all of them from parameters."""
        return bool(self._made[self._component[ids]].all())


def find_channels(graph: Graph, pinned: Sequence[tuple[str, str]] = ()) -> Channels:
    """Return the channels of a graph.

    ``pinned`` lists operations whose own output channels must stay, with the reason; see
    ``Producer``.
    """
    from nncf.graph.channel_rules import label

    reasons = dict(pinned)
    taken: dict[str, int] = {}
    best: dict[str, tuple[int, int]] = {}
    while True:
        channels = Channels(label(graph, reasons, taken), graph)
        stuck = {}
        for key, choice in channels.labels.choices.items():
            units = channels.units_of(choice.watched)
            freedom = len(np.unique(units[units != NO_UNIT]))
            best[key] = max(best.get(key, (0, 0)), (freedom, -choice.taken))
            if best[key][0] <= 1 and choice.taken + 1 < choice.options:
                stuck[key] = choice.taken + 1
        if not stuck:
            break
        taken.update(stuck)
    wanted = {key: -option for key, (_, option) in best.items() if option}
    if wanted == {key: option for key, option in taken.items() if option}:
        return channels
    return Channels(label(graph, reasons, wanted), graph)


def unlabelled(operation: Operation) -> list[Axes]:
    """Return the outputs of an operation that keep all their lengths."""
    return [[None] * len(shape) for shape in operation.attributes.get("output_shapes", ())]


def _components(size: int, ties: Sequence[tuple[Ids, Ids]]) -> Any:
    """Return the number of the connected component of each label."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not size:
        return np.zeros(0, dtype=np.int64)
    first = np.concatenate([a for a, _ in ties]) if ties else np.zeros(0, dtype=np.int64)
    second = np.concatenate([b for _, b in ties]) if ties else first
    pairs = coo_matrix((np.ones(len(first), dtype=np.int32), (first, second)), shape=(size, size))
    return connected_components(pairs, directed=False)[1].astype(np.int64)
