# SPDX-License-Identifier: Apache-2.0
"""From the ONNX file that a converter from TensorFlow writes to the deployed form.

The converter gives layers of channels-last data transposed weights, and batch norms as a product
and a sum. Weights are brought into the form that ``nncf.onnx.write.deploy`` starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from nncf.onnx.activations import leave_out_zero_points
from nncf.onnx.graph import (
    Array,
    Codes,
    StoredWeight,
    array,
    attribute,
    dequantized,
    nodes,
    only_consumer,
    producer,
    store,
    weight_behind,
)
from nncf.onnx.linear import replace
from nncf.onnx.pack import pack_weights
from nncf.onnx.weights import (
    along,
    f32,
    fold_weight_sources,
    has_bias,
    output_axis,
    scale_output,
    set_bias,
    store_weights,
)
from nncf.onnx.write import clean, deploy, rename, serialized, split_shared_outputs

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")


def finish(
    converted: Any,
    weights: Mapping[str, Array],
    *,
    for_onnx_runtime: bool,
    packs: bool,
    raise_opset: bool,
    names: tuple[Sequence[str], Sequence[str]],
) -> bytes:
    """Return the deployed form of a converted model (a ModelProto) as the bytes of a file.

    ``weights`` are the values of those inputs of the model that are weights; the file stores
    them. ``names`` are those of the other inputs and of the outputs. ``packs``: whether weights
    of 4 bits and fewer take less than a byte each.
    """
    import onnx

    model = ir.from_proto(onnx.shape_inference.infer_shapes(converted))
    common.LiftConstantsToInitializersPass()(model)
    split_shared_outputs(model)
    graph = model.graph
    _store_inputs(graph, weights)
    _join_pairs(graph)
    fold_weight_sources(model)
    store_weights(graph)
    clean(model)
    move_weights(graph)
    clean(model)
    fold_products_and_sums(graph)
    deploy(model, for_onnx_runtime=for_onnx_runtime)
    if packs:
        pack_weights(model, raise_opset=raise_opset)
    if not for_onnx_runtime:
        leave_out_zero_points(graph)
    clean(model)
    rename(model, *names)
    return serialized(model)


# ------------------------------------------------------------------------------------- weights


def _store_inputs(graph: ir.Graph, weights: Mapping[str, Array]) -> None:
    """Turn inputs that are weights into stored tensors."""
    for value in list(graph.inputs):
        name = (value.name or "").removesuffix(":0")
        if name in weights:
            graph.inputs.remove(value)
            stored = store(graph, name, weights[name])
            value.replace_all_uses_with(stored, replace_graph_outputs=True)


def _join_pairs(graph: ir.Graph) -> None:
    """Dequantize at once what is transposed in between: the order does not matter per tensor."""
    for dequantize in nodes(graph, "DequantizeLinear"):
        move = producer(dequantize.inputs[0], "Transpose")
        quantize = None if move is None else producer(move.inputs[0], "QuantizeLinear")
        scale = array(dequantize.inputs[1])
        if move is None or quantize is None or scale is None or scale.ndim:
            continue
        parameters = list(dequantize.inputs)[1:]
        inner = ir.node("DequantizeLinear", [quantize.outputs[0], *parameters])
        inner.outputs[0].name = f"{quantize.outputs[0].name}.values"
        outer = ir.node("Transpose", [inner.outputs[0]], move.attributes)
        result, old = outer.outputs[0], dequantize.outputs[0]
        result.name, result.shape, result.type = f"{old.name}.moved", old.shape, old.type
        graph.insert_before(dequantize, [inner, outer])
        replace(old, result)


def move_weights(graph: ir.Graph) -> None:
    """Apply what only reorders a stored weight to its codes.

    The scales are reordered in the weight's shape too, and their axis is where they vary then;
    a weight of which they vary along several axes stays as it is.
    """
    for node in nodes(graph, *_MOVES):
        weight = weight_behind(node.inputs[0])
        if weight is None:
            continue
        moved = _moved(node, weight.codes)
        content = None if moved is None else _moved_codes(node, weight, moved)
        if content is None:
            continue
        value = dequantized(graph, node, f"{weight.name}.transposed", content)
        node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)


def _moved(node: ir.Node, data: Array) -> Array | None:
    """Return what a node that reorders makes of an array; None if its shape is computed."""
    if node.op_type == "Identity":
        return data
    if node.op_type == "Transpose":
        return data.transpose(list(attribute(node, "perm", range(data.ndim)[::-1])))
    given = array(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None:
        return None
    numbers = [int(n) for n in given.reshape(-1)]
    if node.op_type == "Reshape":
        return data.reshape([data.shape[i] if n == 0 else n for i, n in enumerate(numbers)])
    if node.op_type == "Squeeze":
        return np.squeeze(data, tuple(numbers))
    return np.expand_dims(data, tuple(numbers))


def _moved_codes(node: ir.Node, weight: StoredWeight, codes: Array) -> Codes | None:
    if not weight.scale.ndim:
        return Codes(codes=codes, scale=weight.scale, zero=weight.zero, axis=0)
    rank = weight.codes.ndim
    scale, zero = (
        _moved(node, np.broadcast_to(along(x, rank, weight.axis % rank), weight.codes.shape))
        for x in (weight.scale, weight.zero)
    )
    assert scale is not None
    assert zero is not None
    for axis, size in enumerate(codes.shape):
        vectors = []
        for full in (scale, zero):
            vector = np.moveaxis(full, axis, 0).reshape(size, -1)[:, 0]
            if np.array_equal(np.broadcast_to(along(vector, codes.ndim, axis), full.shape), full):
                vectors.append(vector)
        if len(vectors) == 2:
            return Codes(codes=codes, scale=vectors[0], zero=vectors[1], axis=axis)
    return None


# ------------------------------------------------------------------------------ products and sums


def fold_products_and_sums(graph: ir.Graph) -> None:
    """Fold constants by which a layer's channels are multiplied or moved into weight and bias."""
    for node in nodes(graph, "Mul", "Add", "Sub"):
        layer, constant = _layer_and_constant(node)
        if layer is None or constant is None:
            continue
        weight, axis = weight_behind(layer.inputs[1]), output_axis(layer)
        bias = array(layer.inputs[2]) if has_bias(layer) else None
        if weight is None or axis is None or (has_bias(layer) and bias is None):
            continue
        channels = weight.codes.shape[axis]
        vector = _per_channel(constant, layer, channels)
        aligned = not weight.scale.ndim or weight.axis % weight.codes.ndim == axis
        if vector is None or not aligned:
            continue
        name = f"{weight.name}.bias"
        if node.op_type == "Mul":
            scale_output(graph, layer, weight, factor=vector, axis=axis)
            if bias is not None:
                set_bias(layer, store(graph, name, f32(bias * vector)))
        elif layer.op_type == "MatMul":
            continue
        else:
            old = np.zeros(channels) if bias is None else bias
            set_bias(layer, store(graph, name, f32(old + vector)))
        replace(node.outputs[0], layer.outputs[0])
        graph.remove(node, safe=True)


def _layer_and_constant(node: ir.Node) -> tuple[ir.Node | None, Array | None]:
    """Return the layer whose result alone a node reads, and the constant beside it."""
    for number in (0, 1):
        if node.op_type == "Sub" and number:
            break
        layer = producer(node.inputs[number], "Conv", "ConvTranspose", "Gemm", "MatMul")
        constant = array(node.inputs[1 - number])
        if layer is None or constant is None or only_consumer(layer.outputs[0]) is not node:
            continue
        return layer, -constant if node.op_type == "Sub" else constant
    return None, None


def _per_channel(constant: Array, layer: ir.Node, channels: int) -> Array | None:
    """Return a constant as one number for each channel of a layer's result, None if it varies."""
    last = layer.op_type in ("Gemm", "MatMul")
    shape = layer.outputs[0].shape
    if shape is None:
        return None
    rank = len(shape)
    if constant.ndim > rank:
        return None
    full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    axis = rank - 1 if last else 1
    if full.size not in (1, full.shape[axis]) or full.shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(full.reshape(-1).astype(np.float64), (channels,))
