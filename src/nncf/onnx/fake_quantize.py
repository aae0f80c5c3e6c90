# SPDX-License-Identifier: Apache-2.0
"""The FakeQuantize form: one ``org.openvinotoolkit::FakeQuantize`` node for each quantizer.

FakeQuantize(x, input_low, input_high, output_low, output_high) with the attribute ``levels``
rounds x to ``levels`` values evenly spaced from low to high. OpenVINO reads it at any number of
bits; ONNX Runtime does not know it. Weights are codes and a DequantizeLinear as in the other
form: OpenVINO would run a layer whose weight goes through a FakeQuantize of few levels in
floating point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from nncf.onnx.activations import clip_bounds
from nncf.onnx.graph import Array, Pair, only_consumer, pairs, producer, store
from nncf.onnx.weights import (
    along,
    fold_batch_norms,
    fold_weight_sources,
    store_weights,
    transpose_weights,
)
from nncf.onnx.write import Probe, clean, label_of


@dataclass(frozen=True)
class Grid:
    """The exported name of a quantizer and where it is; its scale and zero, shaped like the tensor."""

    call: str
    label: str
    scale: Array
    zero: Array


def broadcastable(pair: Pair) -> tuple[Array, Array]:
    """Return scale and zero point shaped to broadcast over the quantized tensor."""
    rank = len(pair.source.shape) if pair.source.shape is not None else 4
    axis = pair.axis % rank
    return along(pair.scale, rank, axis), along(pair.zero.astype(np.float64), rank, axis)


DOMAIN = "org.openvinotoolkit"


def use_fake_quantize(model: ir.Model) -> dict[ir.Value, Grid]:
    """Replace the quantizers of activations by FakeQuantize and weights by codes, in place.

    Returns what the quantizers became.
    """
    common.LiftConstantsToInitializersPass()(model)
    fold_weight_sources(model)
    graph = model.graph
    store_weights(graph)
    clean(model)
    transpose_weights(graph)
    fold_batch_norms(graph)
    grids = {}
    for pair in pairs(graph):
        source = pair.source
        low, high = activation_codes(pair)
        clip = producer(source, "Clip")
        if clip is not None and high - low < 255 and only_consumer(source) is pair.quantize:
            source = clip.inputs[0] or source
        result = fake_quantize(graph, pair, source, low=low, high=high)
        pair.result.replace_all_uses_with(result, replace_graph_outputs=True)
        grids[result] = Grid(pair.result.name or "", label_of(pair), *broadcastable(pair))
    graph.opset_imports[DOMAIN] = 1
    clean(model)
    return grids


def fake_quantize_probes(model: ir.Model, grids: dict[ir.Value, Grid]) -> tuple[Probe, ...]:
    """Return where to read the quantizers that ``use_fake_quantize`` wrote."""
    present = {value for node in model.graph for value in node.outputs}
    return tuple(
        Probe(grid.call, value.name or "", zero=grid.zero, scale=grid.scale, label=grid.label)
        for value, grid in grids.items()
        if value in present
    )


def activation_codes(pair: Pair) -> tuple[int, int]:
    """Return the first and last code in use: a Clip before a quantizer of fewer bits narrows it."""
    bounds = np.iinfo(pair.zero.dtype)
    low, high = int(bounds.min), int(bounds.max)
    clip = producer(pair.source, "Clip")
    if clip is None or pair.per_channel:
        return low, high
    # Only a Clip whose bounds lie on the grid belongs to the quantizer.
    scale, zero = float(pair.scale), int(pair.zero)
    ends = [bound / scale + zero for bound in clip_bounds(clip)]
    if not all(np.isfinite(end) and abs(end - round(end)) < 1e-3 for end in ends):
        return low, high
    first, last = (round(end) for end in ends)
    return (first, last) if low <= first < last <= high else (low, high)


def fake_quantize(
    graph: ir.Graph, pair: Pair, source: ir.Value, *, low: int, high: int
) -> ir.Value:
    """Insert the node for a grid of the codes ``low`` to ``high``; returns its result."""
    scale, zero = broadcastable(pair)
    shaped = [((code - zero) * scale).astype(np.float32) for code in (low, high)]
    name = pair.result.name or "quantizer"
    values = [
        store(graph, f"{name}.{end}", data)
        for end, data in zip(("low", "high"), shaped, strict=True)
    ]
    node = ir.node(
        "FakeQuantize", [source, *values, *values], {"levels": high - low + 1}, domain=DOMAIN
    )
    result = node.outputs[0]
    result.name, result.shape, result.type = f"{name}.fake", pair.result.shape, pair.result.type
    graph.insert_before(pair.quantize, node)
    return result
