# SPDX-License-Identifier: Apache-2.0
"""Where channels that can be removed are in a model, as a value that lives in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.layout import Layout
from nncf.graph.address import Point
from nncf.graph.channels import NO_UNIT, Channels, Ids
from nncf.graph.graph import Number, Operation

CHANNELS = "channels"
"""Under this word a model's compression notes the ChannelMap of what strip removes."""

Axes = Mapping[int, Ids]
"""By axis, the unit of each index (``NO_UNIT`` where it stays)."""

Kept = NDArray[np.bool_]
"""For each unit whether it is kept."""


def count(units: Ids, kept: Kept) -> int:
    """Return how many of these channels are left; those without a unit stay."""
    return int((kept[units] | (units == NO_UNIT)).sum())


@dataclass(frozen=True)
class ResolvedNumber:
    """A number in a call that follows from how many of ``units`` are kept; see ``graph.Number``.

    ``owner`` tells that the call passes on what its layer knows of its own weight. ``splits``
    are the units of an axis that a reshape splits: the model's code may compute the number from
    its new length and an old number, so it is replaced whatever it is, once any of them is gone.
    """

    address: str
    layer: str
    owner: bool
    path: tuple[str | int, ...]
    old: int
    meaning: str
    units: Ids
    sign: int = 1
    splits: Ids | None = None

    def new_value(self, kept: Kept) -> int:
        return self.sign * count(self.units, kept)

    def rule(self, kept: Kept) -> tuple[tuple[str | int, ...], int | None, int] | None:
        """Return (path, what is replaced or None for anything, by what); None if nothing is."""
        new = self.new_value(kept)
        if self.splits is not None:
            is_shorter = count(self.splits, kept) < len(self.splits)
            return (self.path, None, new) if is_shorter else None
        return (self.path, self.old, new) if new != self.old else None


@dataclass(frozen=True)
class ChannelMap:
    """Where units are: in parameters and buffers, at points of operations, in masks, in calls.

    ``masks`` names the ops that hide channels until they are removed; an op's ``hidden(axis)``
    is a bool array, True for what it hides.
    """

    units: int
    tensors: Mapping[str, Axes]
    points: Mapping[str, Axes]
    masks: Mapping[str, Axes]
    numbers: tuple[ResolvedNumber, ...]

    def kept_units(self, ops: Mapping[str, Any]) -> Kept:
        """Return which units the masks in the model keep."""
        kept = np.ones(self.units, dtype=bool)
        for name, axes in self.masks.items():
            for axis, units in axes.items():
                kept[units[ops[name].hidden(axis) & (units != NO_UNIT)]] = False
        return kept


def masks_of(axes: Axes, kept: Kept) -> dict[int, Kept]:
    """Return, by axis, which indices stay; axes that keep all are left out."""
    masks = {axis: kept[units] | (units == NO_UNIT) for axis, units in axes.items()}
    return {axis: mask for axis, mask in masks.items() if not mask.all()}


def channel_map(channels: Channels, layout: Layout) -> ChannelMap:
    """Return the map of a graph's channels; the ops of ``layout`` hide them along their ``axes``."""
    tensors = channels.tensor_axes()
    points = dict(_points(channels, tensors))
    masks: dict[str, Axes] = {}
    for insert in layout:
        axes: tuple[int, ...] = getattr(insert.op, "axes", ())
        masks[insert.name] = {axis: points[str(insert.points[0])][axis] for axis in axes}
    return ChannelMap(channels.count, tensors, points, masks, tuple(_numbers(channels)))


def _points(channels: Channels, tensors: Mapping[str, Axes]) -> Iterator[tuple[str, Axes]]:
    for operation in channels.graph.operations():
        for edge in channels.graph.inputs_of(operation.key):
            axes = channels.value_axes(edge.source, edge.output_port)
            if axes:
                yield str(Point(operation.key, "input", edge.input_port)), axes
        for port in range(len(operation.attributes.get("output_shapes", ()))):
            axes = channels.value_axes(operation.key, port)
            if axes:
                yield str(Point(operation.key, "output", port)), axes
        for parameter in operation.parameters:
            if parameter.direct and parameter.name in tensors:
                point = Point(operation.key, "weight", parameter.port)
                yield str(point), tensors[parameter.name]


def _numbers(channels: Channels) -> Iterator[ResolvedNumber]:
    for operation in channels.graph.operations():
        numbers = operation.attributes.get("numbers", ())
        splits = _split_axes(channels, operation) if numbers else {}
        for number in numbers:
            units, sign, split = _units_of(channels, operation, number), 1, None
            if number.meaning == "length" and number.axis in splits:
                split = splits[number.axis]
                units = np.full(number.value, NO_UNIT) if units is None else units
            elif units is None or (units == NO_UNIT).all():
                continue
            elif number.meaning == "position":
                sign = 1 if number.value > 0 else -1
            yield ResolvedNumber(
                address=operation.key,
                layer=operation.layer,
                owner=_is_owner(operation),
                path=number.path,
                old=number.value,
                meaning=number.meaning,
                units=units,
                sign=sign,
                splits=split,
            )


def _split_axes(channels: Channels, operation: Operation) -> dict[int, Ids]:
    """Return, by axis of the only output, the units of the input axis that is split into it."""
    rearrangement: Any = operation.attributes.get("rearrangement") or ()
    axes = _input_axes(channels, operation)
    found: dict[int, Ids] = {}
    if len(rearrangement) != 1:
        return found
    for source, units in axes.items():
        lines = enumerate(rearrangement[0])
        along = [k for k, line in lines if (line[:, source] != line[0, source]).any()]
        if len(along) > 1:
            found.update(dict.fromkeys(along, units))
    return found


def _input_axes(channels: Channels, operation: Operation) -> dict[int, Ids]:
    edges = [e for e in channels.graph.inputs_of(operation.key) if e.input_port == 0]
    return channels.value_axes(edges[0].source, edges[0].output_port) if edges else {}


def _is_owner(operation: Operation) -> bool:
    prefix = f"{operation.layer}." if operation.layer else ""
    return any(p.name == f"{prefix}weight" for p in operation.parameters if p.direct)


def _units_of(channels: Channels, operation: Operation, number: Number) -> Ids | None:
    """Return the units that a number counts; None when it stays as it is."""
    if number.meaning == "groups":
        return _units_of_groups(channels, operation, number)
    if number.meaning in ("position", "input_length"):
        axes = _input_axes(channels, operation)
    else:
        axes = channels.value_axes(operation.key, number.port)
    return _counted(axes[number.axis], number) if number.axis in axes else None


def _counted(units: Ids, number: Number) -> Ids:
    if number.meaning == "position":
        return units[: number.value] if number.value > 0 else units[number.value :]
    if number.meaning == "padding_before":
        return units[: number.value]
    if number.meaning == "padding_after":
        return units[len(units) - number.value :]
    return units


def _units_of_groups(channels: Channels, operation: Operation, number: Number) -> Ids | None:
    """Return one unit for each group, where whole groups are removed."""
    is_convolution = "convolution" in operation.kind.name
    if is_convolution and operation.key not in channels.labels.whole_groups:
        return None
    axes = channels.value_axes(operation.key)
    rank = len(operation.attributes.get("kernel_size", ()))
    shape = operation.attributes["output_shapes"][0]
    units = axes.get(len(shape) - rank - 1 if is_convolution else 1)
    if units is None:
        return None
    first: Ids = units.reshape(number.value, -1)[:, 0]
    return first
