# SPDX-License-Identifier: Apache-2.0
"""Linear layers on tensors of any rank, in the one form that ONNX Runtime runs on integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncf.onnx.graph import array, nodes, only_consumer, pair_behind, store, weight_behind


def flatten_linears(graph: ir.Graph) -> None:
    """Rewrite MatMul + Add with a stored weight and bias as Reshape, Gemm, Reshape.

    ONNX Runtime makes a float Gemm of MatMul + Add before it looks for quantizers; a Gemm that
    stands between them from the start becomes an integer one.
    """
    for product in nodes(graph, "MatMul"):
        weight, add = weight_behind(product.inputs[1]), only_consumer(product.outputs[0])
        source = product.inputs[0]
        if weight is None or add is None or add.op_type != "Add" or source is None:
            continue
        bias = next((v for v in add.inputs if v is not product.outputs[0]), None)
        data, shape = array(bias), source.shape
        fits = data is not None and data.shape == (weight.codes.shape[-1],)
        if not fits or shape is None or weight.codes.ndim != 2 or pair_behind(source) is None:
            continue
        rows, columns = weight.codes.shape
        flat = source
        if len(shape) != 2:
            flat = reshape(graph, add, source, store(graph, "flat_shape", np.array([-1, rows])))
        gemm = ir.node("Gemm", [flat, product.inputs[1], bias], {"transB": 0}, name=product.name)
        gemm.outputs[0].name = f"{add.outputs[0].name}.flat"
        graph.insert_before(add, gemm)
        result = gemm.outputs[0]
        if len(shape) != 2:
            result = reshape(graph, add, result, full_shape(graph, add, source, columns))
        result.shape, result.type = add.outputs[0].shape, add.outputs[0].type
        replace(add.outputs[0], result)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` take the place and, where it is an output of the model, the name of ``old``."""
    if old.is_graph_output():
        old.name, new.name = f"{old.name}.replaced", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def reshape(graph: ir.Graph, before: ir.Node, value: ir.Value, shape: ir.Value) -> ir.Value:
    node = ir.node("Reshape", [value, shape])
    node.outputs[0].name = f"{value.name}.reshaped"
    graph.insert_before(before, node)
    return node.outputs[0]


def full_shape(graph: ir.Graph, before: ir.Node, source: ir.Value, columns: int) -> ir.Value:
    """Return the shape of ``source`` with ``columns`` last, stored if one axis at most varies."""
    assert source.shape is not None
    known = [int(size) if isinstance(size, int) else -1 for size in source.shape][:-1]
    if known.count(-1) <= 1:
        return store(graph, "full_shape", np.array([*known, columns]))
    leading = ir.node("Shape", [source], {"start": 0, "end": -1})
    joined = ir.node(
        "Concat",
        [leading.outputs[0], store(graph, "columns", np.array([columns]))],
        {"axis": 0},
    )
    for node in (leading, joined):
        node.outputs[0].name = f"{source.name}.{node.op_type.lower()}"
        graph.insert_before(before, node)
    return joined.outputs[0]
