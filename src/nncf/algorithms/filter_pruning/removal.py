# SPDX-License-Identifier: Apache-2.0
"""What has to become shorter when units are removed, as a value that lives in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nncf.algorithms.filter_pruning.costs import count
from nncf.compression.layout import Layout
from nncf.graph.address import Point
from nncf.graph.channels import Channels, Ids
from nncf.graph.graph import Number, Operation

Axes = Mapping[int, Ids]
"""By axis, the unit of each index (``NO_UNIT`` where it stays)."""


@dataclass(frozen=True)
class ResolvedNumber:
    """A number in a call that follows from how many of ``units`` are kept; see ``graph.Number``.

    ``owner`` tells that the call passes on what its layer knows of its own weight.
    """

    address: str
    layer: str
    owner: bool
    path: tuple[str | int, ...]
    old: int
    meaning: str
    units: Ids
    sign: int = 1

    def new_value(self, kept: Any) -> int:
        return self.sign * count(self.units, kept)


@dataclass(frozen=True)
class ChannelMap:
    """Where units are: in parameters and buffers, at points of operations, in own masks, in calls."""

    units: int
    tensors: Mapping[str, Axes]
    points: Mapping[str, Axes]
    masks: Mapping[str, Axes]
    numbers: tuple[ResolvedNumber, ...]


def channel_map(channels: Channels, layout: Layout) -> ChannelMap:
    """Return the map of a graph's channels; ``layout`` has the own masks."""
    count_of_units = int(channels.units_of(_all(channels)).max(initial=-1)) + 1
    tensors = channels.tensor_axes()
    points = dict(_points(channels, tensors))
    masks = {insert.name: points.get(str(insert.points[0]), {}) for insert in layout}
    masks = {
        insert.name: {axis: masks[insert.name][axis] for axis in insert.op.axes}  # type: ignore[attr-defined]  # ours
        for insert in layout
    }
    numbers = tuple(_numbers(channels))
    return ChannelMap(count_of_units, tensors, points, masks, numbers)


def _all(channels: Channels) -> Any:
    import numpy as np

    return np.arange(channels.labels.size)


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
        for number in operation.attributes.get("numbers", ()):
            found = _units_of(channels, operation, number)
            if found is None or (found[0] < 0).all():
                continue
            yield ResolvedNumber(
                *(operation.key, operation.layer, _is_owner(operation)),
                *(number.path, number.value, number.meaning, *found),
            )


def _is_owner(operation: Operation) -> bool:
    prefix = f"{operation.layer}." if operation.layer else ""
    return any(p.name == f"{prefix}weight" for p in operation.parameters if p.direct)


def _units_of(channels: Channels, operation: Operation, number: Number) -> tuple[Ids, int] | None:
    """Return the units that a number counts, and its sign; None when it stays as it is."""
    if number.meaning == "groups":
        return _units_of_groups(channels, operation, number)
    if number.meaning in ("position", "input_length"):
        edges = channels.graph.inputs_of(operation.key)
        source = next((edge for edge in edges if edge.input_port == 0), None)
        if source is None:
            return None
        axes = channels.value_axes(source.source, source.output_port)
    else:
        axes = channels.value_axes(operation.key, number.port)
    units = axes.get(number.axis)
    if units is None:
        return None
    if number.meaning == "position":
        return (units[: number.value], 1) if number.value > 0 else (units[number.value :], -1)
    if number.meaning == "padding_before":
        return units[: number.value], 1
    if number.meaning == "padding_after":
        return units[len(units) - number.value :], 1
    return units, 1


def _units_of_groups(
    channels: Channels, operation: Operation, number: Number
) -> tuple[Ids, int] | None:
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
    return units.reshape(number.value, -1)[:, 0], 1
