# SPDX-License-Identifier: Apache-2.0
"""What a call of Keras does to shapes, and what it needs all channels of its tensors for.

A layer or operation that only rearranges is run once more on numbers that tell where they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from nncf.graph.graph import Number
from nncf.tensorflow.calibration import same_random_streams
from nncf.tensorflow.op_kinds import keras_class
from nncf.tensorflow.tracing import Call, is_symbolic
from nncf.tensorflow.vectors import known_variables

Shape = tuple[int, ...]
Lines = tuple[np.ndarray[Any, Any], ...]

_REARRANGING = frozenset(
    ["reshape", "squeeze", "unsqueeze", "transpose", "expand", "repeat", "split", "slice"]
)
_OVER_AXES = frozenset(
    ["mean", "sum", "reduce_max", "norm", "variance", "l2_norm", "softmax", "log_softmax"]
    + ["roll", "layer_norm", "rms_norm"]
)
_LAYERS_ONLY = frozenset(
    ["convolution", "depthwise_convolution", "transposed_convolution", "linear", "embedding"]
    + ["batch_norm", "layer_norm", "group_norm", "rms_norm", "prelu"]
)
_CONVOLUTIONS = frozenset(["convolution", "depthwise_convolution"])
_MOST_ELEMENTS = 2**25
"""A tensor with more is taken for one that cannot be rearranged."""


def shape_attributes(call: Call, kind: str, shapes: tuple[Shape, Shape]) -> dict[str, Any]:
    """Return the attributes of an Operation that speak of axes (see ``Operation``).

    ``shapes`` are those of the first input and the first output of the step.
    """
    before, after = shapes
    operation = call.operation
    found: dict[str, Any] = {
        "input_channel_axis": channel_axis(operation, len(before)),
        "channel_axis": channel_axis(operation, len(after)),
    }
    if kind in _REARRANGING:
        found |= _rearranged(call, kind, before)
    if kind in _OVER_AXES:
        found["axes"] = _axes(operation, len(before))
    groups = getattr(operation, "groups", 1)
    if (kind in _CONVOLUTIONS and groups > 1) or kind == "group_norm":
        number = Number(("groups",), groups, "groups", found["channel_axis"])
        found["numbers"] = (number,)
    reason = next(_reasons(call, kind, before, after), None)
    if reason is not None:
        found["keeps_channels"] = reason
    return found


def channel_axis(operation: Any, rank: int) -> int:
    """Return the axis of channels of a tensor of that rank at an operation."""
    own = getattr(operation, "axis", None)
    kind = keras_class(operation).__name__
    if kind in ("BatchNormalization", "GroupNormalization") and isinstance(own, int):
        return own % max(rank, 1)
    first = getattr(operation, "data_format", "channels_last") == "channels_first"
    return 1 if first and rank > 1 else max(rank - 1, 0)


def _axes(operation: Any, rank: int) -> tuple[int, ...]:
    """Return the axes over which a reduction or normalisation runs; all where it does not say."""
    if isinstance(operation, keras.layers.Activation) or not hasattr(operation, "axis"):
        is_last = isinstance(operation, keras.layers.Layer)  # a softmax among the activations
        return (rank - 1,) if is_last else tuple(range(rank))
    axis = operation.axis
    if axis is None:
        return tuple(range(rank))
    several = axis if isinstance(axis, (tuple, list)) else (axis,)
    return tuple(sorted(int(one) % rank for one in several))


# --- what needs all channels -----------------------------------------------------------------


def _reasons(call: Call, kind: str, before: Shape, after: Shape) -> Iterator[str]:
    """Yield why no tensor at the call may lose channels, nothing where the rules of the kind say."""
    operation, name = call.operation, keras_class(call.operation).__name__
    is_layer = isinstance(operation, keras.layers.Layer)
    if kind in ("lstm", "gru", "rnn"):
        yield "a recurrent layer keeps its sizes"
    elif is_layer:
        known = known_variables(operation)
        strange = (v.name for v in operation.weights if id(v) not in known)
        yield from (f"it has the variable {variable}" for variable in strange)
        if not _can_be_resized(operation):
            yield "another number of filters in what its get_config() returns makes no other layer"
    elif kind in _LAYERS_ONLY:
        yield "its weight is computed in the forward"
    elif kind not in _REARRANGING and _meets_constants(call):
        yield "it meets a constant whose channels stay"
    other = {"concat": ("Concatenate", "Stack"), "matmul": ("Matmul",)}.get(kind)
    if name in _TAKES_SIZES or (other is not None and name not in other):
        yield f"{name} needs all channels"
    axis = channel_axis(operation, len(before))
    if kind == "pad" and before[axis:][:1] != after[axis:][:1]:
        yield "it pads channels"
    is_scaling = isinstance(operation, keras.layers.Rescaling)
    if is_scaling and np.size(operation.scale) + np.size(operation.offset) > 2:
        yield "it has a number for each channel"


_TAKES_SIZES = frozenset(
    ["EinsumDense", "ReversibleEmbedding", "BroadcastTo", "Masking", "DepthToSpace", "SpaceToDepth"]
    + ["Repeat"]
)


def _can_be_resized(layer: Any) -> bool:
    """Tell whether a layer of a user's class, derived from one of Keras, can be made smaller."""
    if type(layer) is keras_class(layer):
        return True
    with same_random_streams():
        try:
            config = layer.get_config()
            sizes = {name: config[name] + 1 for name in ("filters", "units") if name in config}
            other = type(layer).from_config({**config, **sizes})
        except Exception:  # noqa: BLE001  # a user's constructor may raise anything
            return False
    return all(getattr(other, name, None) == size for name, size in sizes.items())


def _meets_constants(call: Call) -> bool:
    """Tell whether an operation is given numbers that are not a single one."""
    for value in (*call.args, *call.kwargs.values()):
        flat = tree.flatten(value)
        if any(is_symbolic(item) for item in flat):
            continue
        if len(flat) > 1 or any(np.size(item) > 1 for item in flat if hasattr(item, "shape")):
            return True
    return False


# --- rearrangement ---------------------------------------------------------------------------


def _rearranged(call: Call, kind: str, before: Shape) -> dict[str, Any]:
    """Return ``rearrangement``, and in ``written_axes`` the axes that the call cuts by numbers."""
    places = _moved(call, before)
    if places is None:
        return {}
    lines = [_lines_of(place, before) for place in places]
    if any(line is None for line in lines):
        return {}
    found: dict[str, Any] = {"rearrangement": tuple(lines)}
    if kind == "slice":
        found["written_axes"] = tuple(_cut_axes(lines[0] or (), before))
    elif not isinstance(getattr(call.operation, "indices_or_sections", 1), int):
        found["written_axes"] = (call.operation.axis % len(before),)
    return found


def _cut_axes(lines: Lines, before: Shape) -> Iterator[int]:
    """Yield the axes of the input of which not every index comes to the output."""
    for axis, length in enumerate(before):
        if max((len(np.unique(line[:, axis])) for line in lines), default=1) < length:
            yield axis


def _moved(call: Call, before: Shape) -> list[np.ndarray[Any, Any]] | None:
    """Return, per output of the call, where in the flattened input its elements were."""
    size = math.prod(before)
    if len(call.tensors) != 1 or not 0 < size <= _MOST_ELEMENTS:
        return None
    source = tf.reshape(tf.range(size, dtype=tf.int32), before)
    args, kwargs = tree.map_structure(
        lambda item: source if is_symbolic(item) else item, (call.args, call.kwargs)
    )
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    try:
        results = tree.flatten(call.operation.call(*args, **kwargs))
    except Exception:  # noqa: BLE001  # what fails on integers is no mere rearrangement
        return None
    return [np.asarray(result) for result in results]


def _lines_of(place: np.ndarray[Any, Any], shape: Shape) -> Lines | None:
    """Return, per axis of an output, the index into the input along it (see ``channels.py``).

    None where an index into the input is not the sum of what the axes of the output contribute.
    """
    if place.size == 0 or not shape:
        return None
    lines: list[np.ndarray[Any, Any]] = []
    for axis in range(place.ndim):
        along = place[tuple(slice(None) if k == axis else 0 for k in range(place.ndim))]
        lines.append(np.stack(np.unravel_index(along, shape), axis=-1))
    origin = np.array(np.unravel_index(place.ravel()[0], shape))
    strides = np.array([math.prod(shape[axis + 1 :]) for axis in range(len(shape))])
    together: Any = int(origin @ strides)
    farthest = origin.copy()
    for axis, line in enumerate(lines):
        steps = line - origin
        farthest += steps.max(axis=0)
        together = together + _spread(steps @ strides, axis, place.ndim)
    is_sum = (farthest < np.array(shape)).all() and np.array_equal(
        np.broadcast_to(together, place.shape), place
    )
    return tuple(lines) if is_sum else None


def _spread(values: np.ndarray[Any, Any], axis: int, rank: int) -> np.ndarray[Any, Any]:
    shape: Sequence[int] = [-1 if k == axis else 1 for k in range(rank)]
    return values.reshape(shape)
