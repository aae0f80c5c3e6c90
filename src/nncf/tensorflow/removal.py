# SPDX-License-Identifier: Apache-2.0
"""Take hidden channels out of a model: layers of the same kind with shorter variables."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from nncf.algorithms.tensorflow.native_quantizer import NativeQuantizer
from nncf.compression.channel_map import CHANNELS, ChannelMap, Kept, count, masks_of
from nncf.errors import ExportError, NotCompressed
from nncf.graph.address import Point
from nncf.tensorflow.capture import CallPlaces
from nncf.tensorflow.op_kinds import keras_class, uses_of
from nncf.tensorflow.records import Record, record_of

_LOGGER = logging.getLogger("nncf")

Array = NDArray[Any]


def removal_of(model: Any) -> Removal | None:
    """Return what strip takes out of a compressed model; None where nothing can go.

    A model that was loaded from a file keeps its channels, hidden, with a warning: nothing tells
    which of them belong together.
    """
    try:
        record = record_of(model)
    except NotCompressed:
        _warn_of_hidden(model)
        return None
    channels: ChannelMap | None = record.notes.get(CHANNELS)
    if channels is None:
        return None
    kept = channels.kept_units(record.ops)
    return None if kept.all() else Removal(model, record, kept)


def _warn_of_hidden(model: Any) -> None:
    ops = (layer for layer in model._flatten_layers() if hasattr(layer, "hidden"))
    if any(op.hidden(axis).any() for op in ops for axis in op.scheme.axes):
        _LOGGER.warning(
            "strip: %s was loaded from a file. Its hidden channels are zero in the result, but not "
            "removed. To remove them, compress the uncompressed model again with the saved "
            "compression state, load the weights, and call strip() of the controller.",
            model.name,
        )


class Removal:
    """The channels that go from a compressed model, and how its layers are without them."""

    def __init__(self, model: Any, record: Record, kept: Kept) -> None:
        captured = record.captured
        self.channels = channels = record.notes[CHANNELS]
        self.nodes = {id(node) for nodes in model._nodes_by_depth.values() for node in nodes}
        self.kept = kept
        self.calls = captured.calls
        self.names = {id(variable): name for name, variable in record.variables.items()}
        places = captured.weights.values()
        self.seen = {id(place.variable): place.use.shape for place in places}
        self.masks = {id(record.ops[name]) for name in channels.masks}
        self.inserts = {id(record.ops[insert.name]): insert for insert in record.layout}
        self.groups = {
            number.address: number for number in channels.numbers if number.meaning == "groups"
        }

    # --- layers ------------------------------------------------------------------------------

    def shortened(
        self, layer: Any, name: str, values: Mapping[int, Any], input_shape: Any
    ) -> Any | None:
        """Return a layer like another without what goes; None where it loses nothing.

        ``values`` are those of compressed variables, by identity; ``input_shape`` is that of the
        shorter input. Raises ExportError for a layer that cannot be made again.
        """
        if not isinstance(layer, keras.layers.Layer):
            return None
        cuts = [masks_of(self._axes(variable), self.kept) for variable in layer.weights]
        if not any(cuts):
            return None
        arrays = []
        for variable, masks in zip(layer.weights, cuts, strict=True):
            value = np.asarray(values.get(id(variable), variable))
            arrays.append(_selected(value, self.seen.get(id(variable)), masks))
        try:
            other = type(layer).from_config(self._config(layer, name, arrays))
            other.build(tuple(input_shape))
            other.set_weights(arrays)
        except Exception as error:
            raise ExportError(
                f"The layer {layer.name} ({type(layer).__name__}) cannot be made with fewer "
                f"channels: {type(error).__name__}: {error}. Expected a layer of which "
                "from_config(get_config()) with another number of filters makes one: correct its "
                "get_config(), or put it into ignored_scopes of filter_pruning."
            ) from error
        other.trainable = layer.trainable
        return other

    def _axes(self, variable: Any) -> Mapping[int, Any]:
        return self.channels.tensors.get(self.names.get(id(variable), ""), {})

    def _config(self, layer: Any, name: str, arrays: list[Array]) -> dict[str, Any]:
        """Return the configuration of a layer with the sizes of its shorter variables."""
        config = {**_without_arrays(layer.get_config()), "name": name}
        shapes = {id(v): array.shape for v, array in zip(layer.weights, arrays, strict=True)}
        for use in uses_of(layer):
            variable = getattr(layer, use.attribute)
            shape = shapes[id(variable)]
            if keras_class(layer) is keras.layers.Embedding:
                config["output_dim"] = shape[1]
            for size in ("filters", "units"):
                if size in config and use.channel_axis is not None:
                    config[size] = shape[use.channel_axis]
        steps = [key for places in self._calls_of(layer) for key in places.steps]
        numbers = [self.groups[key] for key in steps if key in self.groups]
        if numbers:
            config["groups"] = numbers[0].new_value(self.kept)
        return config

    def _calls_of(self, operation: Any) -> list[CallPlaces]:
        return [places for places in self.calls if places.call.operation is operation]

    # --- calls -------------------------------------------------------------------------------

    def reshaped(self, node: Any) -> Any | None:
        """Return what to call for a reshape whose sizes change; None for any other call."""
        operation = node.operation
        if type(operation).__name__ != "Reshape":
            return None
        is_layer = isinstance(operation, keras.layers.Layer)
        calls = [places for places in self.calls if places.made is operation]
        own = [item for item in operation._inbound_nodes if id(item) in self.nodes]
        number = next(place for place, item in enumerate(own) if item is node)
        sizes = list(operation.target_shape if is_layer else operation.newshape)
        first = 1 if is_layer else 0
        axes = self.channels.points.get(str(Point(calls[number].steps[0], "output", 0)), {})
        changed = {
            axis - first: count(units, self.kept)
            for axis, units in axes.items()
            if axis >= first and sizes[axis - first] not in (-1, None)
        }
        new = tuple(changed.get(place, size) for place, size in enumerate(sizes))
        if new == tuple(sizes):
            return None
        if not is_layer:
            return lambda x: keras.ops.reshape(x, new)
        name = operation.name if number == 0 else f"{operation.name}_{number}"
        return keras.layers.Reshape(new, name=name)

    # --- ops on activations ------------------------------------------------------------------

    def native(self, op: Any) -> Any | None:
        """Return the native form of an op without the channels that go; None for a mask of them."""
        if id(op) in self.masks:
            return None
        native = op.native()
        insert = self.inserts.get(id(op))
        if insert is None or not isinstance(native, NativeQuantizer) or native.axis is None:
            return native
        axes = self.channels.points.get(str(insert.points[0]), {})
        mask = masks_of(axes, self.kept).get(native.axis)
        if mask is None:
            return native
        ends = {
            end: np.asarray(getattr(native, end))[mask].tolist()
            for end in ("low", "high")
            if len(getattr(native, end)) > 1
        }
        return NativeQuantizer(**{**native.to_state(), **ends})


def _without_arrays(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in which no initializer holds the values of a longer variable."""
    return {
        name: "zeros" if name.endswith("_initializer") and _is_array(item) else item
        for name, item in config.items()
    }


def _is_array(initializer: Any) -> bool:
    is_constant = isinstance(initializer, dict) and initializer.get("class_name") == "Constant"
    return is_constant and not isinstance(initializer["config"].get("value"), (int, float))


def _selected(value: Array, seen: tuple[int, ...] | None, masks: Mapping[int, Kept]) -> Array:
    """Return an array without the indices that are not kept.

    The two last axes of a depthwise kernel, [channels, multiplier], are seen as one, of which all
    that belongs to a channel goes at once.
    """
    if seen is not None and len(seen) == value.ndim - 1:
        mask = masks.get(len(seen) - 1)
        if mask is None:
            return value
        return np.compress(mask.reshape(value.shape[-2:]).any(axis=1), value, axis=-2)
    for axis, mask in masks.items():
        value = np.compress(mask, value, axis=axis)
    return value
