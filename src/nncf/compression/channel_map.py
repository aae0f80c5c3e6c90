# SPDX-License-Identifier: Apache-2.0
"""Where channels that can be removed are in a model, as a value that lives in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.layout import Layout
from nncf.graph.address import Point
from nncf.graph.channel_moves import sources_along
from nncf.graph.channels import NO_UNIT, Channels, Ids
from nncf.graph.graph import Number, Operation

CHANNELS = "channels"
"""Under this word a model's compression notes the ChannelMap of what strip removes."""

Axes = Mapping[int, Ids]
"""By axis, the unit of each index (``NO_UNIT`` where it stays)."""

Kept = NDArray[np.bool_]
"""For each unit whether it is kept."""

_LEAST_PART = 8
_END = 2**31 - 1
"""A position behind the last index: where nothing is left that -4 counted from the end, say."""


def count(units: Ids, kept: Kept) -> int:
    """Return how many of these channels are left; those without a unit stay."""
    return int((kept[units] | (units == NO_UNIT)).sum())


@dataclass(frozen=True)
class Correction:
    """How a number in a call changes: ``path`` leads to it, ``old`` becomes ``new``.

    ``old`` None: whatever is there. ``inferred``: it is left to the framework to work out, where
    it leaves no other number open.
    """

    path: tuple[str | int, ...]
    old: float | None
    new: float
    inferred: bool = False


@dataclass(frozen=True)
class ResolvedNumber:
    """A number in a call that follows from how many of ``units`` are kept; see ``graph.Number``.

    ``owner`` tells that the call passes on what its layer knows of its own weight. The model's
    code may compute the number, from the new length of another tensor and an old number, say:
    ``watched`` are units without which it may be wrong, and ``exact`` that the units alone say
    what it must be. ``inferred``: they do not, other lengths are in it.
    """

    address: str
    layer: str
    owner: bool
    path: tuple[str | int, ...]
    old: float
    meaning: str
    units: Ids
    sign: int = 1
    watched: Ids | None = None
    exact: bool = True
    inferred: bool = False

    def new_value(self, kept: Kept) -> int:
        found = self.sign * count(self.units, kept)
        return _END if found == 0 and self.sign < 0 else found

    def correction(self, kept: Kept, shortened: AbstractSet[int]) -> Correction | None:
        """Return what to do when only ``kept`` units are left; None if nothing.

        ``shortened`` are the former lengths of all axes that become shorter. An open number is
        always written: where another one of the call must be open instead.
        """
        if self.meaning == "scale":
            is_of_length = any(_is_computed_from(self.old, length) for length in shortened)
            return Correction(self.path, None, self.old) if is_of_length else None
        new = self.new_value(kept)
        if self.meaning == "open":
            return Correction(self.path, None, new)
        watched = self.units if self.watched is None else self.watched
        is_shorter = new != self.old or count(watched, kept) < len(watched)
        if self.inferred or not self.exact:
            found = Correction(self.path, self.old, new, self.inferred)
            return found if is_shorter else None
        is_doubtful = self.meaning == "length" and any(
            self.old % length == 0 or length % self.old == 0 for length in shortened
        )
        return Correction(self.path, None, new) if is_shorter or is_doubtful else None


def _is_computed_from(number: float, length: int) -> bool:
    """Tell whether code may have computed a factor or divisor from a length or a part of it.

    The part is what one head has, say: not less than ``_LEAST_PART`` and a divisor of the length.
    """
    if number <= 0 or length <= 1:
        return False
    for power in (2, -2, 1, -1):
        base = number**power
        part = round(base) if base < 2 * length else 0
        is_part = part == length or (part >= _LEAST_PART and length % part == 0)
        if is_part and abs(base / part - 1) < 1e-6:
            return True
    return False


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

    def shortened_lengths(self, kept: Kept) -> set[int]:
        """Return how long those axes of parameters were that have become shorter."""
        found = (masks_of(axes, kept).values() for axes in self.tensors.values())
        return {len(mask) for masks in found for mask in masks}

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
            own = tensors.get(parameter.name, {})
            shortened = {
                place: own[axis]
                for place, axis in enumerate(parameter.own_axes())
                if axis is not None and axis in own
            }
            if shortened:
                yield str(Point(operation.key, "weight", parameter.port)), shortened


def _numbers(channels: Channels) -> Iterator[ResolvedNumber]:
    for operation in channels.graph.operations():
        for number in operation.attributes.get("numbers", ()):
            found = _resolved(channels, operation, number)
            if found is not None:
                units, change = found
                yield ResolvedNumber(
                    address=operation.key,
                    layer=operation.layer,
                    owner=_is_owner(operation),
                    path=number.path,
                    old=number.value,
                    meaning=number.meaning,
                    units=units,
                    **change,
                )


def _resolved(
    channels: Channels, operation: Operation, number: Number
) -> tuple[Ids, dict[str, Any]] | None:
    """Return the units that a number counts, and what else a ResolvedNumber says of it."""
    if number.meaning == "scale":
        return np.zeros(0, dtype=np.int64), {}
    if number.meaning == "groups":
        units = _units_of_groups(channels, operation, number)
        return None if units is None else (units, {})
    if operation.kind.name in _RESIZING and number.meaning in ("length", "open"):
        return _resolved_size(channels, operation, number)
    before = _input_labels(channels, operation)
    if number.meaning in ("position", "input_length", "features"):
        labels = before.get(number.axis)
    else:
        labels = channels.value_labels(operation.key, number.port).get(number.axis)
    if labels is None or number.axis not in before:
        return None
    watched = channels.units_of(before[number.axis])
    if (watched == NO_UNIT).all():
        return None
    change: dict[str, Any] = {"exact": channels.labels.is_closed(before[number.axis])}
    if change["exact"]:
        change["watched"] = watched
    if number.meaning == "position":
        change["sign"] = 1 if number.value > 0 else -1
    return _counted(channels.units_of(labels), number), change


_RESIZING = frozenset(["reshape", "expand"])


def _resolved_size(
    channels: Channels, operation: Operation, number: Number
) -> tuple[Ids, dict[str, Any]] | None:
    """Resolve a size in a call of view, reshape, unflatten or expand.

    The new axis may be a part of a split one, several joined ones, or both. Where one without
    labels is among them (batch, height), its length may be another one in the next call.
    """
    rearrangement: Any = operation.attributes.get("rearrangement") or ()
    if len(rearrangement) != 1:
        return None
    before = _input_labels(channels, operation)
    sources = sources_along(rearrangement[0][number.axis])
    labelled = [before[axis] for axis in sources if axis in before]
    own = channels.value_labels(operation.key).get(number.axis)
    if not labelled:
        return None
    units = np.full(int(number.value), NO_UNIT) if own is None else channels.units_of(own)
    is_closed = len(labelled) == len(sources) and all(map(channels.labels.is_closed, labelled))
    is_closed &= own is None or id(own) not in channels.labels.loose
    watched = np.concatenate([channels.units_of(ids) for ids in labelled])
    if is_closed:
        are_channels = any(channels.are_made(ids) for ids in labelled)
        if number.meaning == "length" and (watched == NO_UNIT).all() and not are_channels:
            return None
        return units, {"watched": watched}
    if number.meaning == "open" or (watched == NO_UNIT).all():
        return None
    return units, {"watched": watched, "exact": False,
                   "inferred": operation.kind.name == "reshape"}  # fmt: skip


def _input_labels(channels: Channels, operation: Operation) -> dict[int, Ids]:
    edges = [e for e in channels.graph.inputs_of(operation.key) if e.input_port == 0]
    return channels.value_labels(edges[0].source, edges[0].output_port) if edges else {}


def _is_owner(operation: Operation) -> bool:
    prefix = f"{operation.layer}." if operation.layer else ""
    return any(p.name == f"{prefix}weight" for p in operation.parameters if p.direct)


def _counted(units: Ids, number: Number) -> Ids:
    value = int(number.value)
    if number.meaning == "position":
        return units[:value] if value > 0 else units[value:]
    if number.meaning == "padding_before":
        return units[:value]
    if number.meaning == "padding_after":
        return units[len(units) - value :]
    return units


def _units_of_groups(channels: Channels, operation: Operation, number: Number) -> Ids | None:
    """Return one unit for each group, where whole groups are removed."""
    is_convolution = "convolution" in operation.kind.name
    if is_convolution and operation.key not in channels.labels.whole_groups:
        return None
    axes = channels.value_axes(operation.key)
    rank = len(operation.attributes.get("kernel_size", ()))
    shape = operation.attributes["output_shapes"][0]
    default = len(shape) - rank - 1 if is_convolution else 1
    units = axes.get(operation.attributes.get("channel_axis", default))
    if units is None:
        return None
    first: Ids = units.reshape(int(number.value), -1)[:, 0]
    return first
