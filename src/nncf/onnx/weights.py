# SPDX-License-Identifier: Apache-2.0
"""Weights as int8 codes, and batch norms folded into their scales.

All of it is exact up to float32 rounding: the codes are the ones that training ended with, a
batch norm only multiplies the scale of each output channel and changes the bias.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncf.onnx.graph import (
    Array,
    Codes,
    Pair,
    StoredWeight,
    array,
    attribute,
    dequantized,
    nodes,
    only_consumer,
    pairs,
    producer,
    store,
    weight_behind,
)

PARAMETER = "nncf.parameter"
"""Key in the metadata of a weight's QuantizeLinear: the parameter from which it is computed."""


def along(vector: Array, rank: int, axis: int) -> Array:
    """Shape a vector so that it broadcasts along ``axis``; scalars stay as they are."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)]) if vector.ndim else vector


def fold_weight_sources(model: ir.Model) -> None:
    """Compute what lies between a stored parameter and its quantizer (a standardisation, say)."""
    from onnxscript.optimizer import fold_constants

    wanted: set[ir.Node] = set()
    for pair in pairs(model.graph):
        ancestors = constant_ancestors(pair.source)
        if ancestors:
            wanted |= ancestors
            pair.quantize.metadata_props[PARAMETER] = largest_source(ancestors)
    if wanted:
        fold_constants(
            model,
            should_fold=lambda node: node in wanted,
            input_size_limit=2**31,
            output_size_limit=2**31,
        )


def constant_ancestors(value: ir.Value | None) -> set[ir.Node] | None:
    """Return the nodes that compute ``value`` from stored tensors alone, None if fed by input."""
    found: set[ir.Node] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if item is None or item.is_initializer():
            continue
        node = item.producer()
        if node is None or node.op_type.startswith("Random"):
            return None
        if node not in found:
            found.add(node)
            pending.extend(node.inputs)
    return found


def largest_source(ancestors: set[ir.Node]) -> str:
    """Return the name of the largest stored tensor that the nodes read."""
    read = {value for node in ancestors for value in node.inputs if array(value) is not None}
    largest = max(read, key=lambda value: (value.const_value.nbytes, value.name), default=None)
    return (largest.name if largest is not None else None) or "weight"


def store_weights(graph: ir.Graph) -> None:
    """Replace every quantizer of a stored float tensor by int8 codes and a DequantizeLinear."""
    for pair in pairs(graph):
        weight = array(pair.source)
        if weight is None:
            continue
        codes, zero = int8_codes(weight, pair)
        value = dequantized(
            graph,
            pair.dequantize,
            f"{pair.quantize.metadata_props.get(PARAMETER, pair.source.name)}.int8",
            Codes(codes=codes, scale=pair.scale, zero=zero, axis=pair.axis),
        )
        pair.result.replace_all_uses_with(value, replace_graph_outputs=True)


def int8_codes(weight: Array, pair: Pair) -> tuple[Array, Array]:
    """Return codes and zero points as int8.

    Codes are counted from that of zero where int8 holds them all, since runtimes run weights
    without a zero point on integers; where not, unsigned grids move down by 128 as a whole.
    """
    bounds = np.iinfo(pair.zero.dtype)
    scale = along(pair.scale, weight.ndim, pair.axis)
    zero = along(pair.zero, weight.ndim, pair.axis).astype(np.int32)
    codes = np.clip(np.rint(weight / scale).astype(np.int64) + zero, bounds.min, bounds.max)
    counted = codes - zero
    if counted.min(initial=0) >= -128 and counted.max(initial=0) <= 127:
        return counted.astype(np.int8), np.zeros(pair.zero.shape, np.int8)
    shift = bounds.min + 128
    return (codes - shift).astype(np.int8), (pair.zero.astype(np.int32) - shift).astype(np.int8)


def transpose_weights(graph: ir.Graph) -> None:
    """Apply a Transpose of a stored weight to its codes."""
    for node in nodes(graph, "Transpose"):
        weight = weight_behind(node.inputs[0])
        if weight is None:
            continue
        rank = weight.codes.ndim
        order = list(attribute(node, "perm", range(rank)[::-1]))
        value = dequantized(
            graph,
            node,
            f"{weight.name}.transposed",
            Codes(
                codes=weight.codes.transpose(order),
                scale=weight.scale,
                zero=weight.zero,
                axis=order.index(weight.axis % rank),
            ),
        )
        node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)


def output_axis(node: ir.Node) -> int | None:
    """Return the axis of a weight that numbers the node's output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    return 0 if attribute(node, "transB", 0) else 1  # Gemm


def fold_batch_norms(graph: ir.Graph) -> None:
    """Fold each batch norm into the stored weight and the bias of the layer before it."""
    for norm in nodes(graph, "BatchNormalization"):
        layer = producer(norm.inputs[0], "Conv", "ConvTranspose", "Gemm")
        if layer is None or only_consumer(layer.outputs[0]) is not norm:
            continue
        weight, axis = weight_behind(layer.inputs[1]), output_axis(layer)
        statistics = [array(value) for value in norm.inputs[1:5]]
        bias = array(layer.inputs[2]) if has_bias(layer) else np.zeros(1)
        if weight is None or axis is None or bias is None or any(s is None for s in statistics):
            continue
        if weight.scale.ndim and weight.axis % weight.codes.ndim != axis:
            continue
        gamma, beta, mean, variance = (np.asarray(s, np.float64) for s in statistics)
        factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        scale_output(graph, layer, weight, factor=factor, axis=axis)
        set_bias(layer, store(graph, f"{weight.name}.bias", f32((bias - mean) * factor + beta)))
        norm.outputs[0].replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)


def f32(data: Array) -> Array:
    return np.asarray(data, np.float32)


def has_bias(layer: ir.Node) -> bool:
    return len(layer.inputs) > 2 and layer.inputs[2] is not None


def set_bias(layer: ir.Node, bias: ir.Value) -> None:
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, bias)


def scale_output(
    graph: ir.Graph, layer: ir.Node, weight: StoredWeight, *, factor: Array, axis: int
) -> None:
    """Multiply a layer's weight by ``factor``, shape (output channels,), without new rounding.

    A negative factor turns the codes of its channel round: (−1 − c) − (−1 − z) = −(c − z),
    which cannot overflow; where no code is −128, −c with the zero point −z does as well and
    keeps symmetric weights symmetric.
    """
    rank, channels = weight.codes.ndim, weight.codes.shape[axis]
    codes = weight.codes.astype(np.int32)
    zero = np.broadcast_to(weight.zero, (channels,)).astype(np.int32)
    negative = factor < 0
    others = tuple(i for i in range(rank) if i != axis)
    offset = np.where(np.minimum(codes.min(axis=others), zero) == -128, -1, 0)
    turned = along(offset, rank, axis) - codes
    codes = np.where(along(negative, rank, axis), turned, codes)
    zero = np.where(negative, offset - zero, zero)
    scale = np.abs(factor) * weight.scale
    dead = f32(scale) == 0
    codes = np.where(along(dead, rank, axis), along(zero, rank, axis), codes)
    value = dequantized(
        graph,
        layer,
        f"{weight.name}.folded",
        Codes(
            codes=codes.astype(np.int8),
            scale=np.where(dead, 1.0, scale),
            zero=zero.astype(np.int8),
            axis=axis,
        ),
    )
    layer.replace_input_with(1, value)
