# SPDX-License-Identifier: Apache-2.0
"""Biases as int32 codes of the scale input × weight, which integer kernels add for free."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncf.onnx.graph import (
    Array,
    Codes,
    Pair,
    StoredWeight,
    array,
    dequantized,
    nodes,
    only_consumer,
    pair_behind,
    store,
    weight_behind,
)
from nncf.onnx.weights import along, has_bias, output_axis, set_bias

BIAS_LIMIT = 2**30
"""The largest bias code: one bit is left so that adding the accumulator cannot overflow int32."""

WEIGHT_LIMIT = 64
"""The largest weight code that is made: two products with uint8 still fit 16 bits, in which
processors without VNNI add them."""

FINE = 1 / 32
"""A bias code's size in levels of the layer's output, on average: 0.8 % of the values, a quarter
of it, round to another level."""


def quantize_biases(graph: ir.Graph) -> None:
    """Store biases as int32 codes of scale input × weight.

    Done where the layer's result is quantized again (ONNX Runtime fuses those), not elsewhere:
    there the float bias is kept as it is.
    """
    for layer in nodes(graph, "Conv", "Gemm"):
        source, weight = pair_behind(layer.inputs[0]), weight_behind(layer.inputs[1])
        bias = array(layer.inputs[2]) if has_bias(layer) else None
        axis = output_axis(layer)
        if source is None or weight is None or bias is None or source.per_channel or bias.ndim != 1:
            continue
        if axis is None or not runs_on_integers(layer) or np.any(weight.zero):
            continue
        power = coarser(source, weight, bias=bias)
        if not np.any(power):
            power = -finer(layer, source, weight)
        if np.any(power):
            weight = rescaled(graph, layer, weight, power=power, axis=axis)
        scale = (source.scale.astype(np.float64) * weight.scale).astype(np.float32)
        codes = np.rint(bias / scale.astype(np.float64)).astype(np.int32)
        zero = np.zeros(scale.shape, np.int32)
        name = layer.inputs[2].name if layer.inputs[2] is not None else None
        value = dequantized(
            graph, layer, f"{name}.int32", Codes(codes=codes, scale=scale, zero=zero, axis=0)
        )
        set_bias(layer, value)


def separate_biases(graph: ir.Graph) -> None:
    """Write the bias of each convolution as an Add of its own, in the shape that it is added in.

    OpenVINO does so when it reads the file, with a dozen operations that compute the shape and
    stay in its IR.
    """
    for layer in nodes(graph, "Conv", "ConvTranspose"):
        stored, bias = weight_behind(layer.inputs[1]), layer.inputs[2] if has_bias(layer) else None
        weight = array(layer.inputs[1]) if stored is None else stored.codes
        data, result = array(bias), layer.outputs[0]
        if weight is None or bias is None or data is None or result.is_graph_output():
            continue
        shaped = store(graph, f"{bias.name}.shaped", along(data, weight.ndim, 1))
        added = ir.node("Add", [result, shaped])
        added.outputs[0].name = f"{result.name}.biased"
        added.outputs[0].shape, added.outputs[0].type = result.shape, result.type
        result.replace_all_uses_with(added.outputs[0])
        added.replace_input_with(0, result)
        layer.resize_inputs(2)
        graph.insert_after(layer, added)


def coarser(source: Pair, weight: StoredWeight, *, bias: Array) -> Array:
    """Return by which power of two the weight's scales must grow for the bias to fit 30 bits.

    Only a channel that its batch norm all but switched off needs it: there the accumulator is
    below the bias's own resolution.
    """
    excess = np.abs(bias) / (source.scale.astype(np.float64) * weight.scale) / BIAS_LIMIT
    if not weight.scale.ndim:
        excess = np.max(excess)
    return np.ceil(np.log2(np.maximum(excess, 1)))


def finer(layer: ir.Node, source: Pair, weight: StoredWeight) -> Array:
    """Return by which power of two the weight's scales must shrink for a bias to be precise.

    Steps of 2 or 3 bits are long, and a bias code is as long as a step of the weight times one
    of the input. Codes of few bits have room to be multiplied. One power for all channels, so
    that a weight has no more different codes than before.
    """
    largest = max(int(np.abs(weight.codes.astype(np.int16)).max(initial=0)), 1)
    possible = max(int(np.log2(WEIGHT_LIMIT / largest)), 0)
    quantizer = quantizer_behind(layer)
    step = None if quantizer is None else array(quantizer.inputs[1])
    if step is None:  # a float result: precise if its terms are more than a few steps
        return np.array(possible if largest < 8 else 0)
    needed = np.mean(source.scale.astype(np.float64) * weight.scale) / np.mean(step) / FINE
    return np.array(min(possible, max(int(np.ceil(np.log2(max(needed, 1)))), 0)))


def rescaled(
    graph: ir.Graph, layer: ir.Node, weight: StoredWeight, *, power: Array, axis: int
) -> StoredWeight:
    """Divide the layer's codes by 2 to the ``power``, by channel or all, and multiply the scale."""
    codes = np.rint(weight.codes / along(2.0**power, weight.codes.ndim, axis))
    value = dequantized(
        graph,
        layer,
        f"{weight.name}.rescaled",
        Codes(
            codes=codes.astype(np.int8),
            scale=weight.scale * 2.0**power,
            zero=weight.zero,
            axis=axis,
        ),
    )
    layer.replace_input_with(1, value)
    found = weight_behind(value)
    assert found is not None
    return found


def runs_on_integers(layer: ir.Node) -> bool:
    """True if ONNX Runtime can run the layer on integers.

    A convolution's result must be quantized next, at most a ReLU or Clip between; a Gemm may
    also give float.
    """
    return layer.op_type == "Gemm" or quantizer_behind(layer) is not None


def quantizer_behind(layer: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads a layer's result, at most a ReLU or Clip between."""
    reader = only_consumer(layer.outputs[0])
    if reader is not None and reader.op_type in ("Relu", "Clip"):
        reader = only_consumer(reader.outputs[0])
    return reader if reader is not None and reader.op_type == "QuantizeLinear" else None
