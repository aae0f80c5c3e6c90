# SPDX-License-Identifier: Apache-2.0
"""Strip: replace training-time CompressionOps by native operations and bake the weights."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import tree

from nncf.algorithms.tensorflow.compression_layer import CompressionLayer
from nncf.algorithms.tensorflow.native_quantizer import NativeQuantizer, fixed
from nncf.errors import ModelError, NotCompressed
from nncf.tensorflow.compressed_layer import CompressedLayer, inner_layer
from nncf.tensorflow.op_kinds import weight_of
from nncf.tensorflow.removal import removal_of
from nncf.tensorflow.tracing import is_symbolic

_LOGGER = logging.getLogger("nncf")


def strip(model: Any, do_copy: bool = True) -> Any:
    """Return the plain form of a compressed model (see ``strip_compressed``).

    Works on a model that was loaded from a file too, but for the removal of hidden channels: they
    are zero then. Raises NotCompressed when the model has no compression.
    """
    ours = (CompressionLayer, CompressedLayer)
    if not any(isinstance(layer, ours) for layer in model._flatten_layers()):
        raise NotCompressed(
            f"strip() needs a model that create_compressed_model returned; {type(model).__name__} "
            "has no compression."
        )
    return strip_compressed(model, do_copy)


def strip_compressed(model: Any, do_copy: bool = True) -> Any:
    """Return a model of plain Keras layers that computes the same values in evaluation.

    Weights carry what compression did to them; activations pass through Keras' own
    ``FakeQuantWithMinMaxVars``. Channels that masks hide are gone: layers that had them are new
    ones, with fewer filters. The result is saved and loaded without nncf. With ``do_copy`` its other
    layers are copies, otherwise those of the given model, whose weights are overwritten.
    """
    return _Stripper(model, do_copy).run()


@dataclass(frozen=True, eq=False)
class WeightGrid:
    """A variable of a stripped model, and the grid on which its values are.

    ``shape`` is the one in which the quantizer sees the values.
    """

    variable: Any
    shape: tuple[int, ...]
    quantizer: NativeQuantizer


def strip_with_grids(model: Any) -> tuple[Any, list[WeightGrid]]:
    """Return the stripped copy of a model, and what its weights alone no longer tell."""
    stripper = _Stripper(model, do_copy=True)
    stripped = stripper.run()
    kept = {id(variable) for variable in stripped.variables}
    return stripped, [grid for grid in stripper.grids if id(grid.variable) in kept]


class _Stripper:
    def __init__(self, model: Any, do_copy: bool) -> None:
        self.model = model
        self.do_copy = do_copy
        self.grids: list[WeightGrid] = []
        self.values: dict[int, Any] = {}
        self.made: dict[int, Any] = {}
        self.removal = removal_of(model)

    def run(self) -> Any:
        model = self.model
        inputs = []
        for tensor in model.inputs:
            value = keras.Input(
                batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name,
                sparse=tensor.sparse,
            )  # fmt: skip
            self.values[id(tensor)] = value
            inputs.append(value)
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if not node.is_input:
                    self._node(node)
        outputs = tree.map_structure(lambda x: self.values[id(x)], model._outputs_struct)
        structure = tree.pack_sequence_as(model._inputs_struct, inputs)
        return keras.Model(structure, outputs, name=model.name)

    def _node(self, node: Any) -> None:
        def filled(item: Any) -> Any:
            return self.values[id(item)] if is_symbolic(item) else item

        arguments = (node.arguments.args, node.arguments.kwargs)
        args, kwargs = tree.map_structure(filled, arguments)
        operation = node.operation
        if isinstance(operation, CompressionLayer):
            outputs: Any = self._quantized(operation, args[0])
        else:
            reshaped = self.removal.reshaped(node) if self.removal else None
            outputs = (reshaped or self._plain(operation, args))(*args, **kwargs)
        for token, value in zip(node.outputs, tree.flatten(outputs), strict=True):
            self.values[id(token)] = value

    def _quantized(self, operation: Any, x: Any) -> Any:
        """Return a tensor behind the native form of an op; behind none while it is off."""
        if id(operation) not in self.made:
            self.made[id(operation)] = self._native(operation)
        native = self.made[id(operation)]
        return x if native is None else native(x)

    def _native(self, op: Any) -> Any | None:
        if not op.enabled:
            return None
        return self.removal.native(op) if self.removal else op.native()

    def _plain(self, operation: Any, args: Any) -> Any:
        if id(operation) not in self.made:
            self.made[id(operation)] = self._plain_layer(operation, args)
        return self.made[id(operation)]

    def _plain_layer(self, operation: Any, args: Any) -> Any:
        if not isinstance(operation, CompressedLayer):
            return self._shortened(operation, operation.name, {}, args) or self._copied(operation)
        baked = [(w, v, operation.compressed(v, w)) for v, w in operation.compressed_variables()]
        values = {id(variable): value for _, variable, value in baked}
        layer = self._shortened(operation.layer, operation.name, values, args)
        is_short = layer is not None
        if layer is None:
            layer = self._copied(operation.layer, name=operation.name)
        for weight, _, value in baked:
            variable = weight_of(inner_layer(layer, weight.path), weight.attribute)
            if not is_short:
                variable.assign(value)
            self._note_grid(operation, weight, variable)
        inner = operation.inner_ops()
        if not inner:
            return layer
        if any(item.path for item in inner):  # layers hidden in one that could not be followed
            used = sorted({number for item in inner for number in item.ops})
            ops = [fixed(operation.ops[number]) for number in used]
            kept = [replace(i, ops=tuple(used.index(n) for n in i.ops)) for i in inner]
            return CompressedLayer(layer, ops, (), kept, name=operation.name)
        natives = {item.step: [operation.ops[n] for n in item.ops] for item in inner}
        steps = {step: self._natives(ops) for step, ops in natives.items()}
        return _InSteps(layer, steps, self.grids)

    def _note_grid(self, operation: Any, weight: Any, variable: Any) -> None:
        """Note the grid of a weight in the stripped layer, in the shape that its ops see."""
        ops = [operation.ops[number] for number in weight.ops]
        natives = self._natives([op for op in ops if hasattr(op, "native")])
        natives = [native for native in natives if isinstance(native, NativeQuantizer)]
        shape = tuple(variable.shape)
        if len(weight.shape) < len(shape):  # the two last axes are seen as one
            shape = (*shape[:-2], shape[-2] * shape[-1])
        self.grids += [WeightGrid(variable, shape, native) for native in natives[-1:]]

    def _shortened(self, layer: Any, name: str, values: Any, args: Any) -> Any | None:
        """Return the layer without the channels that go; None if it loses none."""
        if self.removal is None or not args or not is_symbolic(args[0]):
            return None
        return self.removal.shortened(layer, name, values, args[0].shape)

    def _natives(self, ops: list[Any]) -> list[Any]:
        return [native for op in ops if (native := self._native(op)) is not None]

    def _copied(self, operation: Any, name: str | None = None) -> Any:
        if not isinstance(operation, keras.layers.Layer):
            other = copy.copy(operation)
            other._inbound_nodes, other._outbound_nodes = [], []
            return other
        return copy_of(operation, name) if self.do_copy else operation


class _InSteps:
    """A layer written as several plain ones, with quantizers between its steps."""

    def __init__(self, layer: Any, natives: dict[int, list[Any]], grids: list[WeightGrid]) -> None:
        self.layer = layer
        self.natives = natives
        self.grids = grids

    def __call__(self, x: Any) -> Any:
        layer, natives = self.layer, dict(self.natives)
        if hasattr(layer, "pointwise_kernel"):
            x = self._separable(x, natives.pop(1, []))
        else:
            plain = type(layer).from_config({**layer.get_config(), "activation": None})
            x = plain(x)
            plain.set_weights(layer.get_weights())
            self._move_grids(layer.weights, plain.weights)
        for native in natives.pop(max(natives, default=0), []):
            x = native(x)
        if layer.activation is keras.activations.linear:
            return x
        return keras.layers.Activation(layer.activation, name=f"{layer.name}_activation")(x)

    def _move_grids(self, before: list[Any], after: list[Any]) -> None:
        """Tell of the variables that take the place of others."""
        moved = [
            replace(grid, variable=new)
            for old, new in zip(before, after, strict=True)
            for grid in self.grids
            if grid.variable is old
        ]
        self.grids += moved

    def _separable(self, x: Any, between: list[Any]) -> Any:
        layer = self.layer
        rank = layer.rank
        depthwise_class = getattr(keras.layers, f"DepthwiseConv{rank}D")
        pointwise_class = getattr(keras.layers, f"Conv{rank}D")
        depthwise = depthwise_class(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            name=f"{layer.name}_depthwise",
        )
        pointwise = pointwise_class(
            layer.filters,
            1,
            data_format=layer.data_format,
            use_bias=layer.use_bias,
            name=layer.name,
        )
        x = depthwise(x)
        for native in between:
            x = native(x)
        x = pointwise(x)
        depthwise.set_weights([layer.depthwise_kernel.numpy()])
        bias = [layer.bias.numpy()] if layer.use_bias else []
        pointwise.set_weights([layer.pointwise_kernel.numpy(), *bias])
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
        self._move_grids(kernels, [depthwise.kernel, pointwise.kernel])
        return x


def copy_of(layer: Any, name: str | None = None) -> Any:
    """Return a layer of the same configuration with the same weights.

    Raises ModelError for a layer whose configuration does not make one.
    """
    if not layer.variables and name in (None, layer.name):
        return layer  # nothing in it that training could change
    try:
        config = layer.get_config()
        if name is not None:
            config = {**config, "name": name}
        other = type(layer).from_config(config)
        if layer.built and not other.built:
            other.build_from_config(layer.get_build_config() or {})
        if layer.weights:
            other.set_weights(layer.get_weights())
    except Exception as error:
        raise ModelError(
            f"The layer {layer.name} ({type(layer).__name__}) cannot be copied: "
            f"{type(error).__name__}: {error}. Give it get_config() and build(), or call "
            "strip(do_copy=False), which changes the weights in the layers that there are."
        ) from error
    other.trainable = layer.trainable
    return other
