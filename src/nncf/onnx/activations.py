# SPDX-License-Identifier: Apache-2.0
"""Quantizers of activations in the form that runtimes fuse: uint8, per tensor, on both sides.

Nothing here changes a value: each step rests on an identity that its docstring states.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncf.onnx.graph import (
    Codes,
    Pair,
    StoredWeight,
    array,
    attribute,
    dequantized,
    nodes,
    only_consumer,
    pair_behind,
    pairs,
    producer,
    store,
    weight_behind,
)

# Operations that only move values about; the number of leading inputs that carry values.
PASSING = {
    "Concat": None,
    "MaxPool": 1,
    "Slice": 1,
    "Pad": 1,
    "Split": 1,
    "Gather": 1,
} | dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand"), 1)


def merge_repeated(graph: ir.Graph, *, key: str) -> None:
    """Let readers of one tensor share one quantizer where the grids are the same.

    The metadata under ``key`` of those that go is appended, as further lines, to the one that stays.
    """
    first: dict[ir.Value, list[Pair]] = {}
    for pair in pairs(graph):
        known = first.setdefault(pair.source, [])
        same = next((other for other in known if other.same_grid(pair)), None)
        if same is None:
            known.append(pair)
            continue
        pair.result.replace_all_uses_with(same.result, replace_graph_outputs=True)
        kept, gone = same.quantize.metadata_props, pair.quantize.metadata_props
        kept[key] = "\n".join(text for text in (kept.get(key), gone.get(key)) if text)


def make_unsigned(graph: ir.Graph) -> None:
    """Turn int8 activations into uint8: the same grid with zero points 128 higher.

    Parameters of per-tensor quantizers become scalars, the form that every runtime fuses.
    """
    for pair in pairs(graph):
        shift = 128 if pair.zero.dtype == np.int8 else 0
        zero = (pair.zero.astype(np.int32) + shift).astype(np.uint8)
        set_grid(graph, pair, pair.scale, zero)


def set_grid(graph: ir.Graph, pair: Pair, scale: np.ndarray, zero: np.ndarray) -> None:
    name = pair.source.name
    values = [store(graph, f"{name}.scale", scale), store(graph, f"{name}.zero_point", zero)]
    for node in (pair.quantize, pair.dequantize):
        for index, value in enumerate(values, start=1):
            node.replace_input_with(index, value)
    pair.quantize.outputs[0].type = ir.TensorType(ir.DataType(ir.DataType.from_numpy(zero.dtype)))


def remove_idle_clips(graph: ir.Graph) -> None:
    """Remove a Relu or Clip whose bounds the uint8 grid that follows reaches by itself.

    Rounding keeps order, so quantize(clip(x)) = quantize(x) as soon as the bounds have the codes
    0 and 255.
    """
    for pair in pairs(graph):
        clip = producer(pair.source, "Relu", "Clip")
        if clip is None or pair.zero.dtype != np.uint8 or only_consumer(pair.source) is None:
            continue
        low, high = clip_bounds(clip)
        codes = [
            np.rint(bound / pair.scale.astype(np.float64)) + pair.zero for bound in (low, high)
        ]
        if np.all(codes[0] <= 0) and np.all(codes[1] >= 255):
            pair.quantize.replace_input_with(0, clip.inputs[0])


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """Return the bounds of a Relu or Clip; those that are computed count as zero."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = [-np.inf, np.inf]
    for index, value in enumerate(list(node.inputs)[1:3]):
        data = array(value)
        if value is not None:
            found[index] = 0.0 if data is None else float(data)
    return found[0], found[1]


def absorb_channel_scales(graph: ir.Graph) -> None:
    """Turn a per-channel quantizer between two layers into one per tensor with the scale 1.

    Between a convolution and a depthwise one, each scale belongs to one channel of both: the
    first layer's weight and bias are divided by it (its scale is per channel anyway), the
    second's multiplied. Codes stay.
    """
    for pair in pairs(graph):
        reader, layer = only_consumer(pair.result), producer(pair.source, "Conv")
        if not pair.per_channel or pair.axis != 1 or reader is None or layer is None:
            continue
        before, after = weight_behind(layer.inputs[1]), weight_behind(reader.inputs[1])
        alone = only_consumer(pair.source) is pair.quantize
        if before is None or after is None or not alone or not is_depthwise(reader, pair):
            continue
        if len(np.unique(pair.zero)) > 1 or (bias := layer_bias(layer)) is None:
            continue
        repeats = after.codes.shape[0] // pair.scale.size
        rescale(graph, layer, before, factor=1 / pair.scale.astype(np.float64))
        rescale(graph, reader, after, factor=np.repeat(pair.scale.astype(np.float64), repeats))
        if bias.size:
            value = store(graph, f"{before.name}.bias", (bias / pair.scale).astype(np.float32))
            layer.replace_input_with(2, value)
        set_grid(graph, pair, np.array(1, np.float32), pair.zero.reshape(-1)[0])


def is_depthwise(reader: ir.Node, pair: Pair) -> bool:
    return reader.op_type == "Conv" and attribute(reader, "group", 1) == pair.scale.size


def layer_bias(layer: ir.Node) -> np.ndarray | None:
    """Return the stored bias, an empty array where there is none, None where it is computed."""
    if len(layer.inputs) < 3 or layer.inputs[2] is None:
        return np.zeros(0)
    return array(layer.inputs[2])


def rescale(graph: ir.Graph, layer: ir.Node, weight: StoredWeight, *, factor: np.ndarray) -> None:
    """Multiply the weight's scales, one per output channel, by ``factor``."""
    value = dequantized(
        graph,
        layer,
        f"{weight.name}.rescaled",
        Codes(
            codes=weight.codes,
            scale=weight.scale * factor,
            zero=np.broadcast_to(weight.zero, factor.shape),
            axis=0,
        ),
    )
    layer.replace_input_with(1, value)


def requantize_passing(graph: ir.Graph) -> None:
    """Quantize again after operations that only move quantized values about.

    Values on a grid stay where they are when they are quantized to it again; with quantizers
    on both sides ONNX Runtime runs the operation, and the layer after it, on integers.
    """
    for node in nodes(graph, *PASSING):
        count = PASSING[node.op_type]
        behind = [pair_behind(value) for value in list(node.inputs)[:count]]
        first = behind[0] if behind else None
        if first is None or first.per_channel:
            continue
        if not all(pair is not None and pair.same_grid(first) for pair in behind):
            continue
        if node.op_type == "Pad" and not pads_on_grid(node):
            continue
        for output in node.outputs:
            readers = [use.node.op_type for use in output.uses()]
            if readers and set(readers) != {"QuantizeLinear"} and not output.is_graph_output():
                quantize_after(graph, node, output, first)


def leave_out_zero_points(graph: ir.Graph) -> None:
    """Remove zero points that are zero: OpenVINO's IR would have three operations for each.

    A QuantizeLinear without one gives uint8, so those of other types stay.
    """
    for node in nodes(graph, "QuantizeLinear", "DequantizeLinear"):
        zero = array(node.inputs[2]) if len(node.inputs) > 2 else None
        may_go = node.op_type == "DequantizeLinear" or (zero is not None and zero.dtype == np.uint8)
        if zero is not None and may_go and not np.any(zero):
            node.resize_inputs(2)


def pads_on_grid(node: ir.Node) -> bool:
    """True if padding writes zeros or copies values; zero is a level of every grid."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    data = array(value)
    return value is None or (data is not None and not np.any(data))


def quantize_after(graph: ir.Graph, node: ir.Node, output: ir.Value, like: Pair) -> None:
    parameters = list(like.quantize.inputs)[1:]
    uses = list(output.uses())
    quantize = ir.node("QuantizeLinear", [output, *parameters], name=f"{output.name}.quantize")
    dequantize = ir.node(
        "DequantizeLinear",
        [quantize.outputs[0], *parameters],
        outputs=[ir.val(f"{output.name}.requantized")],
    )
    quantize.outputs[0].name = f"{output.name}.codes"
    graph.insert_after(node, [quantize, dequantize])
    for use in uses:
        use.node.replace_input_with(use.idx, dequantize.outputs[0])
