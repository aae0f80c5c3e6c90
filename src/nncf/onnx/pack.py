# SPDX-License-Identifier: Apache-2.0
"""Weights of few bits in less than a byte each, at the speed of int8.

A file stores codes as INT4 or UINT4 (two in a byte), as INT2 or UINT2, or as bytes that number
the rows of a table (two to eight codes in a row). Nodes between these and the weight's
DequantizeLinear make int8 codes of them. All their inputs are stored, so runtimes compute them
once, when they load the file, and then find int8 weights, which they run on integers. The same
INT4 tensor read by DequantizeLinear itself would run in floating point
(docs/decisions/0010-small-weights.md has the figures).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from nncf.onnx.graph import Array, StoredWeight, nodes, store, weight_behind

_MOST = 16  # different codes: with more, a byte holds only one
_NODE = 80  # bytes of a node in the file, its names not counted


@dataclass(frozen=True)
class Small:
    """Codes of few different values: code = levels[index] + offset.

    ``levels`` are ascending int8; ``offset`` has one number for each channel along an axis,
    shaped to broadcast, or is None.
    """

    indices: Array
    levels: Array
    offset: Array | None

    @property
    def per_byte(self) -> int:
        """How many indices a byte holds, as digits to the base of the number of levels."""
        return next(n for n in (8, 5, 4, 3, 2) if max(len(self.levels), 2) ** n <= 256)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and the offsets, without the nodes that read them."""
        offsets = 0 if self.offset is None else self.offset.size
        return -(-self.indices.size // self.per_byte) + offsets

    @property
    def step(self) -> int:
        """The largest number of which all differences of levels are multiples."""
        return max(int(np.gcd.reduce(np.diff(self.levels.astype(np.int16)), initial=0)), 1)

    @property
    def span(self) -> int:
        """The difference between the last level and the first, in steps."""
        return (int(self.levels[-1]) - int(self.levels[0])) // self.step


@dataclass(frozen=True)
class Narrow:
    """A pair of integer types for so many codes a byte, that an opset and a file version bring."""

    signed: type
    unsigned: type
    per_byte: int
    opset: int
    ir_version: int


INT4 = Narrow(ml_dtypes.int4, ml_dtypes.uint4, per_byte=2, opset=21, ir_version=10)
INT2 = Narrow(ml_dtypes.int2, ml_dtypes.uint2, per_byte=4, opset=25, ir_version=13)


def pack_weights(model: ir.Model, *, raise_opset: bool) -> None:
    """Store int8 codes of 16 values or fewer in as little as they need, where that is smaller.

    ``raise_opset``: whether the model may go to the opset that has INT4, if a weight needs it.
    With the opset as it is, tables take the place of types that it lacks.
    """
    found = list(_small_weights(model.graph))
    if raise_opset and any(_fits(small, INT4) for _, small in found):
        _raise_opset(model)
    opset = model.graph.opset_imports[""]
    tables: dict[bytes, ir.Value] = {}
    for weight, small in found:
        kind = next((k for k in (INT4, INT2) if opset >= k.opset and _fits(small, k)), None)
        if kind is None:
            _use_table(model.graph, weight, small, tables)
        else:
            _use_type(model.graph, weight, small, kind)
            model.ir_version = max(model.ir_version or 0, kind.ir_version)


def _raise_opset(model: ir.Model) -> None:
    from onnxscript.version_converter import convert_version

    if model.graph.opset_imports[""] < INT4.opset:
        convert_version(model, INT4.opset)


def _small_weights(graph: ir.Graph) -> Iterator[tuple[StoredWeight, Small]]:
    for node in nodes(graph, "DequantizeLinear"):
        weight = weight_behind(node.outputs[0])
        if weight is None or weight.codes.dtype != np.int8 or not weight.codes.ndim:
            continue
        small = smallest(weight.codes, axis=weight.axis if weight.scale.ndim else 0)
        if small is not None and _cost(weight, small) < weight.codes.nbytes:
            yield weight, small


def smallest(codes: Array, *, axis: int) -> Small | None:
    """Return int8 codes in the fewest bytes, None where each needs its own.

    Zero points that differ, and channels whose sign a batch norm has turned, move the codes of
    a channel; counted from the lowest one of each channel they are few again.
    """
    if not codes.size:
        return None
    others = tuple(i for i in range(codes.ndim) if i != axis % codes.ndim)
    found = [_levelled(codes, None), _levelled(codes, codes.min(axis=others, keepdims=True))]
    fitting = [small for small in found if small is not None]
    return min(fitting, key=lambda small: small.nbytes, default=None)


def _levelled(codes: Array, offset: Array | None) -> Small | None:
    moved = codes.astype(np.int16) - (0 if offset is None else offset)
    present = np.bincount((moved + 128).reshape(-1), minlength=384) > 0
    levels = np.flatnonzero(present) - 128
    if len(levels) > _MOST or levels[-1] > 127:
        return None
    indices = (np.cumsum(present) - 1)[moved + 128]
    return Small(indices.astype(np.uint8), levels.astype(np.int8), offset)


def _fits(small: Small, kind: Narrow) -> bool:
    """Whether the type holds the codes in no more bytes than a table.

    Codes a step apart would have to be multiplied, which OpenVINO does not compute beforehand;
    it does not read INT2 either.
    """
    multiplied = small.step > 1 and (kind is INT4 or small.span * small.step > 127)
    enough = small.per_byte in (kind.per_byte, 5) if kind is INT2 else small.per_byte == 2
    return enough and not multiplied and small.span < 2 ** (8 // kind.per_byte)


def _cost(weight: StoredWeight, small: Small) -> int:
    """Return an upper bound of the bytes that the packed form takes, its nodes included.

    Not its table, which is shared, as most weights have the same levels.
    """
    return small.nbytes + 5 * (_NODE + 2 * len(weight.name))


def _use_type(graph: ir.Graph, weight: StoredWeight, small: Small, kind: Narrow) -> None:
    """Read the codes as numbers of a narrow type, times their step, plus their offset."""
    quotients = small.levels.astype(np.int16) // small.step
    rest = int(small.levels[0]) - int(quotients[0]) * small.step
    limits = ml_dtypes.iinfo(kind.signed)
    signed = limits.min <= quotients[0] and quotients[-1] <= limits.max
    base = 0 if signed or quotients[0] == 0 else int(quotients[0])
    stored = (quotients - base)[small.indices].astype(kind.signed if signed else kind.unsigned)
    codes = _node(graph, weight, "Cast", [_packed(graph, weight, stored)], to=ir.DataType.INT8)
    if small.step > 1:
        factor = store(graph, f"{weight.name}.step", np.array(small.step, np.int8))
        codes = _node(graph, weight, "Mul", [codes, factor])
    added = np.array(base * small.step + rest, np.int8)
    _connect(graph, weight, codes, added if small.offset is None else small.offset + added)


def _use_table(
    graph: ir.Graph, weight: StoredWeight, small: Small, tables: dict[bytes, ir.Value]
) -> None:
    """Read the codes as rows of a table, one for each value of a byte."""
    rows, count = table(small.levels, small.per_byte), weight.codes.size
    key = rows.tobytes()
    if key not in tables:
        tables[key] = store(graph, "code_table", rows)
    packed = _packed(graph, weight, digits(small.indices, len(small.levels), small.per_byte))
    numbers = _node(graph, weight, "Cast", [packed], to=ir.DataType.INT32)
    codes = _node(graph, weight, "Gather", [tables[key], numbers], axis=0)
    if count % small.per_byte:  # the last byte is not full
        flat, *ends = (
            store(graph, f"{weight.name}.{name}", np.array([value]))
            for name, value in (("flat", -1), ("start", 0), ("end", count))
        )
        codes = _node(graph, weight, "Reshape", [codes, flat])
        codes = _node(graph, weight, "Slice", [codes, *ends])
    shape = store(graph, f"{weight.name}.shape", np.array(weight.codes.shape, np.int64))
    _connect(graph, weight, _node(graph, weight, "Reshape", [codes, shape]), small.offset)


def table(levels: Array, per_byte: int) -> Array:
    """Return the codes of each byte, the first in its lowest digit: int8 [rows, per_byte]."""
    base = max(len(levels), 2)
    numbers = np.arange(base**per_byte)[:, None] // base ** np.arange(per_byte) % base
    return levels[np.minimum(numbers, len(levels) - 1)]


def digits(indices: Array, base: int, per_byte: int) -> Array:
    """Return indices as digits of bytes, the first in the lowest."""
    padded = np.zeros(-(-indices.size // per_byte) * per_byte, np.uint8)
    padded[: indices.size] = indices.reshape(-1)
    weights = (max(base, 2) ** np.arange(per_byte)).astype(np.uint8)
    return (padded.reshape(-1, per_byte) * weights).sum(axis=1, dtype=np.uint8)


def _packed(graph: ir.Graph, weight: StoredWeight, data: Array) -> ir.Value:
    return store(graph, f"{weight.name}.packed", data)


def _node(
    graph: ir.Graph,
    weight: StoredWeight,
    op_type: str,
    inputs: list[ir.Value],
    **attributes: int,
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes)
    node.outputs[0].name = f"{weight.name}.{op_type.lower()}"
    graph.insert_before(weight.dequantize, node)
    return node.outputs[0]


def _connect(graph: ir.Graph, weight: StoredWeight, codes: ir.Value, offset: Array | None) -> None:
    """Let DequantizeLinear read ``codes`` plus ``offset``."""
    if offset is not None and np.any(offset):
        added = store(graph, f"{weight.name}.offset", offset.astype(np.int8))
        codes = _node(graph, weight, "Add", [codes, added])
    weight.dequantize.replace_input_with(0, codes)
