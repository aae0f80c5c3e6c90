# SPDX-License-Identifier: Apache-2.0
"""The last layers of a model in LiteRT: their results are quantized there, and nowhere else.

No quantizer was trained behind them, since nothing of the model reads their results. Without a
range the converter would leave these layers, and their weights, in float. It is the range of the
results on registered data, and a quarter more on both sides.

A softmax behind them stays in float: LiteRT's integer one gives multiples of 1/256, which are all
zero where there are many classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nncf.tensorflow.export_form import ExportForm

SAMPLES = 256
"""How many samples the range is taken from."""

_MARGIN = 0.25

_PASSING = ("Activation", "Softmax", "ReLU", "Reshape", "Flatten", "Dropout", "Identity")

_WEIGHTED = ("Dense", "Conv1D", "Conv2D", "DepthwiseConv2D")


def last_layers(form: ExportForm) -> list[Any]:
    """Return the layers with compressed weights whose results only outputs are made of."""
    compressed = {id(grid.variable) for grid in form.grids}
    found = []
    for tensor in form.model.outputs:
        operation = tensor._keras_history.operation
        while type(operation).__name__ in _PASSING:
            operation = operation._inbound_nodes[0].input_tensors[0]._keras_history.operation
        if type(operation).__name__ not in _WEIGHTED or len(operation._inbound_nodes) > 1:
            continue
        readers = operation._outbound_nodes
        if len(readers) <= 1 and any(id(v) in compressed for v in operation.variables):
            found.append(operation)
    return list(dict.fromkeys(found))


def last_softmaxes(form: ExportForm) -> list[Any]:
    """Return the operations that only compute the softmax of which an output consists."""
    found = [tensor._keras_history.operation for tensor in form.model.outputs]
    return [item for item in dict.fromkeys(found) if type(item).__name__ == "Softmax"]


def float_softmax(x: Any, axis: Any = -1) -> Any:
    """Return the softmax, by operations that LiteRT's converter leaves in float.

    The quotient is a product with 1 / √(sum²): written as one, it becomes the integer softmax again.
    """
    powers = tf.exp(x - tf.reduce_max(x, axis, keepdims=True))
    return powers * tf.math.rsqrt(tf.square(tf.reduce_sum(powers, axis, keepdims=True)))


def without_integer_softmax(form: ExportForm) -> dict[Any, Callable[..., Any]]:
    """Return, for each softmax that is an operation of its own, what computes it in float."""

    def in_float(operation: Any) -> Callable[..., Any]:
        return lambda x, *_, **__: float_softmax(x, operation.axis)

    return {operation: in_float(operation) for operation in last_softmaxes(form)}


def unchanged(x: Any) -> Any:
    """Return x."""
    return x


def with_softmax(form: ExportForm) -> list[Any]:
    """Return the operations at outputs that have a softmax as their activation."""
    found = [tensor._keras_history.operation for tensor in form.model.outputs]
    softmax = keras.activations.softmax
    return [item for item in found if getattr(item, "activation", None) is softmax]


def ranges_of(
    form: ExportForm, layers: Iterable[Any], batches: Iterable[Any]
) -> dict[Any, tuple[float, float]]:
    """Return the range of what each layer computes, before its activation, on batches of inputs."""
    ends: dict[Any, tuple[float, float]] = {}

    def seen_by(layer: Any) -> Callable[[Any], Any]:
        def see(x: Any) -> Any:
            low, high = ends.get(layer, (0.0, 0.0))
            ends[layer] = min(low, float(np.min(x))), max(high, float(np.max(x)))
            return x

        return see

    with before_activation({layer: seen_by(layer) for layer in layers}):
        for batch in batches:
            form.model(batch, training=False)
    wider = 1 + _MARGIN
    return {layer: (low * wider, high * wider) for layer, (low, high) in ends.items() if low < high}


def quantized_to(ends: tuple[float, float]) -> Callable[[Any], Any]:
    """Return the function that quantizes a tensor to 8 bits of a range."""
    return lambda x: tf.quantization.fake_quant_with_min_max_vars(x, *ends)


@contextmanager
def before_activation(functions: Mapping[Any, Callable[[Any], Any]]) -> Iterator[None]:
    """Inside, what layers compute passes a function before their activation.

    A softmax is one that stays in float.
    """
    before = {layer: layer.activation for layer in functions}

    def composed(activation: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if activation is keras.activations.softmax:
            activation = float_softmax
        return lambda x: function(x) if activation is None else activation(function(x))

    for layer, function in functions.items():
        object.__setattr__(layer, "activation", composed(layer.activation, function))
    try:
        yield
    finally:
        for layer, activation in before.items():
            object.__setattr__(layer, "activation", activation)
