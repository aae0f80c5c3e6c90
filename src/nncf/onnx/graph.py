# SPDX-License-Identifier: Apache-2.0
"""Reading and changing ONNX graphs: constants, and the quantizers among the nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def array(value: ir.Value | None) -> Array | None:
    """Return the data of a stored tensor, None for a tensor that is computed or fed."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return None if value.const_value is None else value.const_value.numpy()


def store(graph: ir.Graph, name: str, data: Array) -> ir.Value:
    """Add a stored tensor under ``name``, or under ``name`` and a number when that is taken."""
    unique, count = name, 1
    while unique in graph.initializers:
        unique, count = f"{name}_{count}", count + 1
    value = ir.val(unique, const_value=ir.tensor(np.asarray(data, order="C"), name=unique))
    graph.register_initializer(value)
    return value


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node that makes ``value`` if it is of one of the types, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the single reader of ``value``; None if there are more or the caller gets it."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def nodes(graph: ir.Graph, *op_types: str) -> list[ir.Node]:
    """Return the nodes of the given types in order; a list, so the graph may be changed."""
    return [node for node in graph if node.domain == "" and node.op_type in op_types]


@dataclass(frozen=True, eq=False)
class Pair:
    """A QuantizeLinear and the DequantizeLinear that reads it: one fake quantizer.

    ``scale`` and ``zero`` have shape () per tensor or (C,) along ``axis``.
    """

    quantize: ir.Node
    dequantize: ir.Node
    scale: Array
    zero: Array

    @property
    def source(self) -> ir.Value:
        value = self.quantize.inputs[0]
        assert value is not None
        return value

    @property
    def result(self) -> ir.Value:
        return self.dequantize.outputs[0]

    @property
    def axis(self) -> int:
        return int(attribute(self.quantize, "axis", 1))

    @property
    def per_channel(self) -> bool:
        return self.scale.size > 1

    def same_grid(self, other: Pair) -> bool:
        """True where both quantizers map every value to the same level."""
        if self.per_channel and self.axis != other.axis:
            return False
        same_zero = np.array_equal(self.zero, other.zero) and self.zero.dtype == other.zero.dtype
        return bool(same_zero and np.array_equal(self.scale, other.scale))


def pairs(graph: ir.Graph) -> Iterator[Pair]:
    """Yield the fake quantizers of the graph in order."""
    for dequantize in nodes(graph, "DequantizeLinear"):
        quantize = producer(dequantize.inputs[0], "QuantizeLinear")
        if quantize is None:
            continue
        pair = as_pair(quantize, dequantize)
        if pair is not None:
            yield pair


def pair_behind(value: ir.Value | None) -> Pair | None:
    """Return the fake quantizer whose result ``value`` is."""
    dequantize = producer(value, "DequantizeLinear")
    quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize else None
    return None if dequantize is None or quantize is None else as_pair(quantize, dequantize)


def as_pair(quantize: ir.Node, dequantize: ir.Node) -> Pair | None:
    scale, zero = array(quantize.inputs[1]), array(quantize.inputs[2])
    if scale is None or zero is None:
        return None
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    return Pair(quantize, dequantize, scale, zero)


_ADDED = re.compile(r"(\.(int8|transposed|folded|rescaled)(_\d+)?)+$")


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A DequantizeLinear of stored int8 codes."""

    dequantize: ir.Node
    codes: Array
    scale: Array
    zero: Array

    @property
    def axis(self) -> int:
        return int(attribute(self.dequantize, "axis", 1))

    @property
    def name(self) -> str:
        """The name of the parameter, without what the export has added to it."""
        value = self.dequantize.inputs[0]
        name = (value.name if value is not None else None) or "weight"
        return _ADDED.sub("", name)


def weight_behind(value: ir.Value | None) -> StoredWeight | None:
    """Return the stored weight whose dequantized form ``value`` is."""
    node = producer(value, "DequantizeLinear")
    if node is None:
        return None
    codes, scale, zero = (array(item) for item in node.inputs)
    if codes is None or scale is None or zero is None:
        return None
    return StoredWeight(node, codes, scale, zero)


@dataclass(frozen=True, eq=False)
class Codes:
    """Integer codes with their grid: value = (codes − zero) · scale, along ``axis`` if vectors."""

    codes: Array
    scale: Array
    zero: Array
    axis: int


def dequantized(graph: ir.Graph, reader: ir.Node, name: str, content: Codes) -> ir.Value:
    """Store codes and return their dequantized form, computed just before ``reader``."""
    inputs = [
        store(graph, name, content.codes),
        store(graph, f"{name}.scale", content.scale.astype(np.float32)),
        store(graph, f"{name}.zero_point", content.zero.astype(content.codes.dtype)),
    ]
    attributes = {"axis": content.axis} if content.scale.ndim else {}
    result = ir.val(f"{name}.dequantized")
    node = ir.node("DequantizeLinear", inputs, attributes, outputs=[result])
    graph.insert_before(reader, node)
    return result
