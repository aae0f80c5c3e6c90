# SPDX-License-Identifier: Apache-2.0
"""What operations that only move values about do to the labels of channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from nncf.graph.channels import Axes, Ids, Labels, Value, unlabelled
from nncf.graph.graph import Operation

Inputs = Mapping[int, Value]


def _rearrange(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    value = inputs[0]
    if not value.is_labelled:
        return unlabelled(operation)
    rearrangement = operation.attributes.get("rearrangement")
    if rearrangement is None:
        return list(_same_shape(operation, value)) or None
    outputs = [_rearranged(operation, value, lines, labels) for lines in rearrangement]
    if operation.kind.name == "split":
        _tie_equal_pieces(operation, outputs, labels)
    return outputs


def _same_shape(operation: Operation, value: Value) -> list[Axes]:
    shapes = operation.attributes["output_shapes"]
    is_same = operation.kind.name == "identity" and list(shapes) == [value.shape]
    return [list(value.axes)] if is_same else []


def _rearranged(operation: Operation, value: Value, lines: Sequence[Ids], labels: Labels) -> Axes:
    """Return the labels of one output from where its elements lie in the input."""
    axes: Axes = [None] * len(lines)
    for source, ids in enumerate(value.axes):
        if ids is None:
            continue
        along = [k for k, line in enumerate(lines) if source in sources_along(line)]
        if source in operation.attributes.get("written_axes", ()):
            labels.pin(ids, operation.key, "its call says where to cut it")
        if not along:
            is_piece = _is_piece(operation, source, len(lines) == len(value.axes))
            picked = ids[lines[0][:1, source]] if is_piece else ids
            labels.pin(picked, operation.key, "it picks single channels")
            continue
        if operation.kind.name in ("slice", "split") and not _tie_steps(
            ids, lines, along, source, labels
        ):
            labels.pin(ids, operation.key, "it skips channels unevenly")
        place, found = (
            (along[0], ids[lines[along[0]][:, source]])
            if len(along) == 1
            else _split_axis(f"{operation.key} {source}", ids, lines, (source, along), labels)
        )
        if len(along) > 1 and labels.is_closed(ids):
            for other in along:
                is_alone = all(value.axes[s] is not None for s in sources_along(lines[other]))
                if other != place and axes[other] is None and is_alone:
                    axes[other] = labels.constant(len(lines[other]), operation.key)
        earlier = axes[place]
        if earlier is not None:
            # Both axes of a flattened pair cannot be shortened: the finer one keeps its freedom.
            coarse, fine = sorted(
                (earlier, found), key=lambda a: (not labels.is_constant(a), len(np.unique(a)))
            )
            labels.pin(coarse, operation.key, "it is flattened together with another such axis")
            found = fine
        axes[place] = found
    is_reshape = operation.kind.name == "reshape"
    return [
        labels.loosen(ids)
        if ids is not None and _is_loose(value, lines, place, (labels, is_reshape))
        else ids
        for place, ids in enumerate(axes)
    ]


def _is_loose(value: Value, lines: Sequence[Ids], place: int, about: tuple[Labels, bool]) -> bool:
    """Tell whether an axis may have more than channels in it when the input is another one.

    With one sample ``[n, c, h, w]`` and ``[n · c, h, w]`` cannot be told apart by their labels: a
    neighbour of length 1 has gone, and the axis may have taken it in. ``about``: the labels, and
    whether the operation can do so at all.
    """
    labels, is_reshape = about
    sources = sources_along(lines[place])
    was_loose = any((ids := value.axes[s]) is not None and id(ids) in labels.loose for s in sources)
    if not is_reshape or not sources:
        return was_loose
    new_shape = [len(line) for line in lines]
    gone = [0]
    if all(sources[0] not in sources_along(line) for line in lines[:place]):
        before = value.shape[: sources[0]]
        gone.append(_ones(reversed(before)) - _ones(reversed(new_shape[:place])))
    if all(sources[-1] not in sources_along(line) for line in lines[place + 1 :]):
        gone.append(_ones(value.shape[sources[-1] + 1 :]) - _ones(new_shape[place + 1 :]))
    return max(gone) > 0 or (was_loose and min(gone) >= 0)


def _ones(lengths: Iterable[int]) -> int:
    """Return how many axes of length 1 come first."""
    return len(list(itertools.takewhile(lambda length: length == 1, lengths)))


def _is_piece(operation: Operation, axis: int, keeps_rank: bool) -> bool:
    """Tell whether a single channel is a piece between positions that follow when others go."""
    numbers = [n for n in operation.attributes.get("numbers", ()) if n.axis == axis]
    return keeps_rank and (len(numbers) > 1 or any(n.meaning == "position" for n in numbers))


def _tie_steps(
    ids: Ids, lines: Sequence[Ids], along: list[int], source: int, labels: Labels
) -> bool:
    """Tie what lies between the steps of a slice: ``x[:, 1::2]`` loses channels in pairs.

    False where the slice does not take one channel of each such bundle.
    """
    taken = lines[along[0]][:, source]
    step = int(taken[1] - taken[0]) if len(taken) > 1 else 1
    if len(along) > 1 or step == 1:
        return True
    if step < 1 or len(ids) != step * len(taken):
        return False
    labels.tie_all(ids.reshape(-1, step), 1)
    return True


def sources_along(line: Ids) -> list[int]:
    """Return the axes of the input along which one goes with an axis of the output."""
    return [int(axis) for axis in np.flatnonzero((line != line[0]).any(axis=0))]


def _split_axis(
    key: str, ids: Ids, all_lines: Sequence[Ids], where: tuple[int, list[int]], labels: Labels
) -> tuple[int, Ids]:
    """Choose along which of several new axes a split axis can be shortened; tie over the others.

    ``where``: which axis is split, and into which ones.
    """
    source, along = where
    lines = [all_lines[k][:, source] for k in along]
    origin = lines[0][0]
    index = np.array(origin)
    for place, line in enumerate(lines):
        shape = [1] * len(lines)
        shape[place] = -1
        index = index + (line - origin).reshape(shape)
    grid = ids[index]
    order = sorted(range(len(lines)), key=lambda place: -grid.shape[place])
    chosen = order[labels.choose(key, len(order))]
    for place in range(len(lines)):
        if place != chosen:
            grid = np.expand_dims(labels.tie_all(grid, place), place)
    found = grid.ravel()
    labels.note_choice(key, len(order), found)
    return along[chosen], found


def _tie_equal_pieces(operation: Operation, outputs: list[Axes], labels: Labels) -> None:
    """Tie the pieces of a split into equal parts: a runtime cuts them at equal distances."""
    numbers = operation.attributes.get("numbers", ())
    is_free = len(numbers) > 1 or any(number.meaning == "position" for number in numbers)
    if is_free or len(outputs) < 2 or operation.function == "unbind":
        return
    for axis in range(len(outputs[0])):
        pieces = [ids for axes in outputs if (ids := axes[axis]) is not None]
        if len({id(ids) for ids in pieces}) < 2:
            continue
        for piece in pieces[1:]:
            if len(piece) == len(pieces[0]):
                labels.tie(pieces[0], piece)
            elif not _same_labels(pieces):
                for one in pieces:
                    labels.pin(one, operation.key, "it is cut into unequal pieces")


def _same_labels(pieces: Sequence[Ids]) -> bool:
    return all(np.array_equal(piece, pieces[0]) for piece in pieces[1:])


def _concat(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    shape = operation.attributes["output_shapes"][0]
    values = list(inputs.values())
    axis = operation.attributes.get("axis", 0) % len(shape)
    if any(len(value.shape) != len(shape) for value in values):
        return _stack(operation, values, labels, axis) if len(values) > 1 else None
    axes: Axes = []
    for place in range(len(shape)):
        parts = [value.axes[place] for value in values]
        if place == axis:
            axes.append(_strung(operation, values, labels, axis))
        else:
            axes.append(_tied(operation, parts, labels))
    return [axes]


def _strung(operation: Operation, values: Sequence[Value], labels: Labels, axis: int) -> Ids | None:
    if all(value.axes[axis] is None for value in values):
        return None
    parts = []
    for value in values:
        ids = value.axes[axis]
        if ids is None:
            ids = labels.fresh(value.shape[axis])
            labels.pin(ids, operation.key, "it is joined with a tensor whose channels stay")
        parts.append(ids)
    return np.concatenate(parts)


def _tied(operation: Operation, parts: Sequence[Ids | None], labels: Labels) -> Ids | None:
    labelled = [ids for ids in parts if ids is not None]
    if not labelled:
        return None
    for other in labelled[1:]:
        labels.tie(labelled[0], other)
    if len(labelled) < len(parts):
        labels.pin(labelled[0], operation.key, "it is joined with a tensor whose channels stay")
    return labelled[0]


def _stack(
    operation: Operation, values: Sequence[Value], labels: Labels, axis: int
) -> list[Axes] | None:
    if operation.function != "stack":
        return None
    rank = len(values[0].shape)
    axes: Axes = [
        _tied(operation, [value.axes[place] for value in values], labels) for place in range(rank)
    ]
    return [[*axes[:axis], None, *axes[axis:]]]


def _pad(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes]:
    """Added channels are constants: each goes when those that are added to it go."""
    value = inputs[0]
    added = {
        (number.axis, number.meaning): number.value
        for number in operation.attributes.get("numbers", ())
    }
    axes: Axes = []
    for axis, ids in enumerate(value.axes):
        before, after = (added.get((axis, f"padding_{side}"), 0) for side in ("before", "after"))
        if ids is None or not (before or after):
            axes.append(ids)
        elif operation.attributes.get("mode") == "constant" and min(before, after) >= 0:
            axes.append(np.concatenate([labels.fresh(before), ids, labels.fresh(after)]))
        else:
            labels.pin(ids, operation.key, "it pads channels with others")
            axes.append(None)
    return [axes]


def _pixel_shuffle(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    value, shape = inputs[0], operation.attributes["output_shapes"][0]
    channel = len(shape) - 3
    ids = value.axes[channel]
    if any(value.axes[axis] is not None for axis in (-1, -2)):
        return None
    axes: Axes = list(value.axes)
    if ids is not None and shape[channel] < value.shape[channel]:
        axes[channel] = labels.tie_all(ids.reshape(shape[channel], -1), 1)
    elif ids is not None:
        axes[channel] = np.repeat(ids, shape[channel] // value.shape[channel])
    return [axes]


def _channel_shuffle(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes]:
    """Groups stay; each loses the same channels."""
    axes: Axes = list(inputs[0].axes)
    ids = axes[1]
    if ids is not None:
        grid = ids.reshape(operation.attributes["groups"], -1)
        labels.tie_all(grid, 0)
        axes[1] = grid.T.ravel()
    return [axes]


MOVE_RULES: dict[str, Callable[[Operation, Inputs, Labels], list[Axes] | None]] = {
    **dict.fromkeys(
        ("reshape", "squeeze", "unsqueeze", "transpose", "expand", "repeat", "split", "slice")
        + ("identity",),
        _rearrange,
    ),
    "concat": _concat,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "channel_shuffle": _channel_shuffle,
}
"""The rule of each kind."""
