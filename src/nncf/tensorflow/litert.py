# SPDX-License-Identifier: Apache-2.0
"""A Keras model as a LiteRT file (``.tflite``) with weights and activations of 8 bits.

The converter reads the grids from fake quantization; no data set is needed. It keeps them where a
weight goes to its operation as it is, which holds for convolutions. Two layers are written as
such: Dense as a convolution with a kernel of 1×1, Conv1D as one of height 1. Elsewhere (LSTM,
Conv2DTranspose, EinsumDense…) the converter lays a grid of its own over the values, 8 bits to the
largest of each channel, or keeps float; the parity check tells whether that is close enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nncf.algorithms.tensorflow.native_quantizer import NativeQuantizer
from nncf.errors import ExportError, MissingDependency
from nncf.tensorflow.export_form import ExportForm
from nncf.tensorflow.litert_outputs import (
    before_activation,
    last_layers,
    quantized_to,
    ranges_of,
    unchanged,
    with_softmax,
    without_integer_softmax,
)
from nncf.tensorflow.litert_packing import packed
from nncf.tensorflow.op_kinds import uses_of, weight_of
from nncf.tensorflow.strip import WeightGrid

Array = NDArray[Any]

_HIGHEST = 127
"""Weight codes go from −127 to 127: LiteRT's kernels count on it."""

_EXACT = ("Conv2D", "DepthwiseConv2D")


def to_litert(form: ExportForm, batches: Iterable[Any] | None = None) -> bytes:
    """Return a model as the bytes of a LiteRT file that takes one sample at a time.

    Inputs and outputs are float. ``batches`` are inputs from which the ranges of the last layers'
    results are taken; without them these layers compute in float. Raises ExportError when a grid has no exact form of 8 bits there,
    or when the converter refuses the model.
    """
    form.refuse_sparse_inputs("LiteRT")
    _check_activations(form)
    exact = {id(grid.variable): _symmetric(grid) for grid in form.grids}
    rewritten = dict(_rewritten(form, exact))
    kept = {id(layer.kernel_variable) for layer in rewritten.values()}
    direct = _direct_kernels(form)

    def quantize(grid: WeightGrid, value: Any) -> Any:
        number = id(grid.variable)
        per_tensor = grid.quantizer.axis is None
        if number in kept or not (per_tensor or number in direct):
            return value
        return exact[number].values(value)

    layers = [] if batches is None else last_layers(form)
    ranges = ranges_of(form, layers, batches or ()) if layers else {}
    results: dict[Any, Callable[[Any], Any]] = dict.fromkeys(with_softmax(form), unchanged)
    results |= {layer: quantized_to(ends) for layer, ends in ranges.items()}
    calls = {**rewritten, **without_integer_softmax(form)}

    @contextmanager
    def adapted() -> Iterator[None]:
        with before_activation(results), _calling(calls):
            yield

    function = form.function(quantize, within=adapted)
    concrete = function.get_concrete_function(*form.signature(1))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    try:
        data = bytes(converter.convert())
    except Exception as error:  # the converter's exceptions share no other base
        first = (str(error).splitlines() or [""])[0]
        raise ExportError(
            f"LiteRT's converter cannot write {form.model.name}: {first} Expected a model of "
            "operations that LiteRT has. Write a SavedModel or an ONNX file instead, or put the "
            "layer into ignored_scopes."
        ) from error
    return packed(data)


def _check_activations(form: ExportForm) -> None:
    for operation in form.model.operations:
        bits = getattr(operation, "num_bits", 8)
        if type(operation).__name__ == "FakeQuantWithMinMaxVars" and bits != 8:
            raise ExportError(
                f"{operation.name}: activations of {bits} bits have no form in LiteRT, which "
                'quantizes them to 8. Set "activations": {"bits": 8}, or write an ONNX file.'
            )


def _symmetric(grid: WeightGrid) -> NativeQuantizer:
    """Return the quantizer of 8 bits around zero with the same steps.

    Raises ExportError when a value lies more than 127 steps from zero.
    """
    old = grid.quantizer
    low, high = np.asarray(old.low, np.float64), np.asarray(old.high, np.float64)
    step = (high - low) / (2**old.bits - 1 - int(old.narrow))
    values = np.asarray(grid.variable.numpy(), np.float64).reshape(grid.shape)
    if old.axis is None:
        steps = step[0]
    else:
        steps = step.reshape([-1 if i == old.axis else 1 for i in range(values.ndim)])
    if np.abs(np.rint(values / steps)).max(initial=0) > _HIGHEST:
        raise ExportError(
            f"{old.name}: the codes of this weight do not lie between −127 and 127 around zero, and "
            'LiteRT stores no others. Use "weights": {"mode": "symmetric"} and leave "overflow_fix" '
            "at its default, or write an ONNX file."
        )
    ends = (_HIGHEST * step).tolist()
    return NativeQuantizer([-x for x in ends], ends, 8, True, old.axis, name=old.name)


def _direct_kernels(form: ExportForm) -> set[int]:
    """Return the variables that go to their operation with the channels last."""
    return {
        id(weight_of(layer, use.attribute))
        for layer in form.model._flatten_layers()
        if type(layer).__name__ in _EXACT and layer.built
        for use in uses_of(layer)
    }


# ------------------------------------------------------------------------------ rewritten layers


class _AsConvolution:
    """What a Dense or Conv1D computes, by a two-dimensional convolution."""

    def __init__(self, layer: Any, quantizer: NativeQuantizer) -> None:
        self.layer = layer
        self.kernel_variable = layer._kernel
        last = NativeQuantizer(
            quantizer.low, quantizer.high, quantizer.bits, quantizer.narrow, 3, name=quantizer.name
        )
        self.quantizer = last

    def __call__(self, x: Any, *_: Any, **__: Any) -> Any:
        layer = self.layer
        kernel = tf.convert_to_tensor(layer.kernel)
        leading = (1,) * (4 - len(kernel.shape))
        kernel = self.quantizer.values(tf.reshape(kernel, (*leading, *kernel.shape)))
        y = self._dense(x, kernel) if len(leading) == 2 else self._convolution(x, kernel)
        if layer.use_bias:
            y = y + tf.convert_to_tensor(layer.bias)
        return y if layer.activation is None else layer.activation(y)

    @staticmethod
    def _dense(x: Any, kernel: Any) -> Any:
        shape = [-1 if n is None else n for n in x.shape[:-1]]
        middle = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        flat = tf.reshape(x, (shape[0], middle, 1, x.shape[-1]))
        return tf.reshape(tf.nn.conv2d(flat, kernel, 1, "VALID"), (*shape, kernel.shape[-1]))

    def _convolution(self, x: Any, kernel: Any) -> Any:
        layer = self.layer
        padding = layer.padding
        if padding == "causal":
            left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            x, padding = tf.pad(x, [[0, 0], [left, 0], [0, 0]]), "valid"
        y = keras.ops.conv(
            tf.expand_dims(x, 1),
            kernel,
            strides=(1, *layer.strides),
            padding=padding,
            dilation_rate=(1, *layer.dilation_rate),
            data_format="channels_last",
        )
        return tf.squeeze(y, 1)


def _rewritten(
    form: ExportForm, exact: Mapping[int, NativeQuantizer]
) -> Iterator[tuple[Any, _AsConvolution]]:
    for layer in form.model.layers:  # those inside of others are called by these
        kind = type(layer).__name__
        if kind not in ("Dense", "Conv1D") or not layer.built:
            continue
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            continue
        quantizer = exact.get(id(layer._kernel))
        if quantizer is not None and quantizer.axis == len(layer._kernel.shape) - 1:
            yield layer, _AsConvolution(layer, quantizer)


@contextmanager
def _calling(rewritten: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Inside, layers compute what is given for them."""
    for layer, call in rewritten.items():
        object.__setattr__(layer, "call", call)
    try:
        yield
    finally:
        for layer in rewritten:
            object.__delattr__(layer, "call")


# ----------------------------------------------------------------------------------- the runtime


class LiteRTFile:
    """A model in LiteRT's interpreter; call it with arrays by name of input, one sample at a time.

    Raises ExportError when the runtime refuses the file.
    """

    runtime = "LiteRT"

    def __init__(self, model: str | Path | bytes) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingDependency("ai-edge-litert", "tf", "Running a LiteRT file") from error
        given = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        try:
            self._interpreter = Interpreter(**given, num_threads=1)
            self._runner = self._interpreter.get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"LiteRT does not take the exported model: {error}") from error

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs by name."""
        wanted = self._runner.get_input_details()
        return dict(self._runner(**{name: inputs[name] for name in wanted}))
