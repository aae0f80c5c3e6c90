# SPDX-License-Identifier: Apache-2.0
"""Nodes that are written while tf2onnx converts, in its own graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nncf.onnx.graph import Array


@dataclass(frozen=True)
class GridOfNode:
    """The grid of one fake quantizer: scale and code of zero, the ends of the codes.

    Scale and zero are numbers, or vectors along ``axis``, by default the last.
    """

    scale: Array
    zero: Array
    ends: tuple[int, int]
    axis: int | None = None


def write_pair(context: Any, node: Any, grid: GridOfNode) -> None:
    """Replace a node by QuantizeLinear and DequantizeLinear, behind a Clip where codes end early."""
    from onnx import TensorProto

    source, result, name = node.input[0], node.output[0], node.name
    shape, dtype = context.get_shape(result), context.get_dtype(result)
    axis = grid.axis if grid.axis is not None else len(shape or (0,)) - 1
    attributes = {"axis": axis} if grid.scale.ndim else {}
    described = {"shapes": [shape], "attr": attributes}
    context.remove_node(name)
    if grid.ends != (0, 255):
        source = _clipped(context, source, name, grid, (shape, dtype))
    values = [
        context.make_const(f"{name}.{part}", data).output[0]
        for part, data in (("scale", grid.scale), ("zero_point", grid.zero))
    ]
    codes = context.make_node(
        "QuantizeLinear",
        [source, *values],
        dtypes=[TensorProto.UINT8],
        name=f"{name}.quantize",
        **described,
    )
    context.make_node(
        "DequantizeLinear",
        [codes.output[0], *values],
        outputs=[result],
        dtypes=[dtype],
        name=f"{name}.dequantize",
        **described,
    )


def _clipped(
    context: Any, source: str, name: str, grid: GridOfNode, described: tuple[Any, Any]
) -> str:
    """Return a tensor within the grid: by Min and Max, whose bounds may differ by channel."""
    shape, dtype = described
    zero, axis = grid.zero.astype(np.float32), grid.axis
    for kind, end in (("Max", grid.ends[0]), ("Min", grid.ends[1])):
        bound = ((end - zero) * grid.scale).astype(np.float32)
        if bound.ndim and axis is not None:
            bound = bound.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        stored = context.make_const(f"{name}.{kind.lower()}", bound).output[0]
        node = context.make_node(
            kind, [source, stored], shapes=[shape], dtypes=[dtype], name=f"{name}.{kind}"
        )
        source = node.output[0]
    return source
