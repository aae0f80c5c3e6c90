# SPDX-License-Identifier: Apache-2.0
"""A layer whose weights pass through CompressionOps each time it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import ops as keras_ops

from nncf.tensorflow.op_kinds import weight_of


@dataclass(frozen=True)
class CompressedWeight:
    """Which ops a weight passes: of the layer at ``path`` (inside), by attribute and shape seen."""

    path: tuple[str, ...]
    attribute: str
    shape: tuple[int, ...]
    ops: tuple[int, ...]


@dataclass(frozen=True)
class InnerOps:
    """Ops between the steps of the layer at ``path``: at the input of step ``step``."""

    path: tuple[str, ...]
    step: int
    ops: tuple[int, ...]


@keras.saving.register_keras_serializable("nncf")
class CompressedLayer(keras.layers.Layer):
    """Calls a layer with compressed weights; the layer and its variables stay what they were.

    ``ops`` are the CompressionOps, ``weights`` and ``inner`` say by their numbers which values
    pass which of them. The layer is called in a ``keras.StatelessScope`` that holds the
    compressed values; what it updates meanwhile (moving averages, seeds) is written afterwards.
    """

    def __init__(
        self,
        layer: Any,
        ops: Sequence[Any],
        compressed_weights: Sequence[CompressedWeight | Mapping[str, Any]] = (),
        inner: Sequence[InnerOps | Mapping[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", layer.name)
        super().__init__(**kwargs, dtype=layer.dtype_policy, autocast=layer.autocast)
        self.layer = layer
        self._count = len(ops)
        for number, op in enumerate(ops):  # tf.train.Checkpoint does not see into Keras' lists
            setattr(self, f"op_{number}", op)
        self._weights_compressed = tuple(
            _read(CompressedWeight, item) for item in compressed_weights
        )
        self._inner = tuple(_read(InnerOps, item) for item in inner)
        self.supports_masking = layer.supports_masking
        self.built = True
        # arguments are understood and converted as the layer does it
        self._call_signature = layer._call_signature
        self._call_context_args = layer._call_context_args
        self._call_has_context_arg = layer._call_has_context_arg
        self._convert_input_args = layer._convert_input_args
        self._allow_non_tensor_positional_args = layer._allow_non_tensor_positional_args

    @property
    def ops(self) -> list[Any]:
        """The CompressionOps of the layer's weights and steps."""
        return [getattr(self, f"op_{number}") for number in range(self._count)]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        mapping = list(self._values())
        with self._patched(), keras.StatelessScope(mapping, collect_losses=True) as scope:
            outputs = self.layer(*args, **kwargs)
        given = {id(variable) for variable, _ in mapping}
        for variable in self.layer.variables:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in given:
                variable.assign(value)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def _values(self) -> Iterator[tuple[Any, Any]]:
        """Yield the variables that have another value in the call, with it."""
        compressed = {}
        for variable, weight in self.compressed_variables():
            compressed[id(variable)] = (variable, self.compressed(variable, weight))
        if keras.src.backend.common.stateless_scope.in_stateless_scope():
            outer = keras.src.backend.common.stateless_scope.get_stateless_scope()
            for variable in self.variables:  # of the ops too, which may run inside the layer
                value = outer.get_current_value(variable)
                if value is not None:
                    compressed.setdefault(id(variable), (variable, value))
        yield from compressed.values()

    def compressed(self, variable: Any, weight: CompressedWeight) -> Any:
        """Return the value that a variable has behind its ops."""
        value = tf.convert_to_tensor(variable)
        seen = tf.reshape(value, weight.shape) if tuple(value.shape) != weight.shape else value
        for number in weight.ops:
            seen = self.ops[number](seen)
        return tf.reshape(seen, value.shape)

    def compressed_variables(self) -> Iterator[tuple[Any, CompressedWeight]]:
        """Yield the variables that are compressed, with what is done to them."""
        for weight in self._weights_compressed:
            yield weight_of(inner_layer(self.layer, weight.path), weight.attribute), weight

    def inner_ops(self) -> tuple[InnerOps, ...]:
        """Return the ops between the steps of the layer and inside it."""
        return self._inner

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Inside, what runs between the steps of the layer runs through its ops."""
        places = [self._patch(item) for item in self._inner]
        for target, name, value in places:
            object.__setattr__(target, name, value[1])
        try:
            yield
        finally:
            for target, name, value in reversed(places):
                if value[0] is None:
                    object.__delattr__(target, name)
                else:
                    object.__setattr__(target, name, value[0])

    def _patch(self, item: InnerOps) -> tuple[Any, str, tuple[Any, Any]]:
        layer = inner_layer(self.layer, item.path)

        def through(x: Any) -> Any:
            for number in item.ops:
                x = self.ops[number](x)
            return x

        if item.step == 0:
            called = layer.call

            def new(x: Any, *args: Any, **kwargs: Any) -> Any:
                return called(through(x), *args, **kwargs)

            return layer, "call", (None, new)
        if item.step == 1 and hasattr(layer, "pointwise_kernel"):
            return layer, "call", (None, lambda x: separable(layer, x, through))
        activation = layer.activation
        return layer, "activation", (activation, lambda x: activation(through(x)))

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_mask(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layer": keras.saving.serialize_keras_object(self.layer),
            "build_config": self.layer.get_build_config(),
            "ops": [keras.saving.serialize_keras_object(op) for op in self.ops],
            "compressed_weights": [asdict(item) for item in self._weights_compressed],
            "inner": [asdict(item) for item in self._inner],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CompressedLayer:
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        build_config = config.pop("build_config")
        if build_config and not layer.built:
            layer.build_from_config(build_config)
        ops = [keras.saving.deserialize_keras_object(op) for op in config.pop("ops")]
        return cls(layer, ops, **config)


def inner_layer(layer: Any, path: Sequence[str]) -> Any:
    """Return the layer to which names lead from ``layer``."""
    for name in path:
        children = layer._flatten_layers(recursive=False, include_self=False)
        layer = next(child for child in children if child.name == name)
    return layer


def separable(layer: Any, x: Any, between: Any) -> Any:
    """Return what a SeparableConv computes, with a function between its two convolutions."""
    how = {"padding": layer.padding, "data_format": layer.data_format}
    x = keras_ops.depthwise_conv(
        x,
        layer.depthwise_kernel,
        strides=layer.strides,
        dilation_rate=layer.dilation_rate,
        **how,
    )
    x = keras_ops.conv(between(x), layer.pointwise_kernel, **how)
    if layer.use_bias:
        first = layer.data_format == "channels_first"
        shape = (1, -1, *(1,) * layer.rank) if first else (-1,)
        x = keras_ops.add(x, keras_ops.reshape(layer.bias, shape))
    return x if layer.activation is None else layer.activation(x)


def _read(kind: type, item: Any) -> Any:
    """Return a record as it is, or from its form in a configuration."""
    if isinstance(item, kind):
        return item
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items()})
