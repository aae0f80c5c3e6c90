# SPDX-License-Identifier: Apache-2.0
"""Where every byte of an ONNX file goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nncf.compression.packed_tensor import element_count
from nncf.compression.sizes import Size, SizeTable
from nncf.errors import CheckpointError, MissingDependency

_UNPACKING = ("Cast", "Gather", "Reshape", "Slice", "Add", "Mul", "BitwiseAnd")
_QUANTIZERS = {
    "QuantizeLinear": ("scale", "zero point"),
    "DequantizeLinear": ("scale", "zero point"),
    "FakeQuantize": ("bound",) * 4,
    "Where": ("value", "value"),
}
"""What the inputs behind the first are, where the first may be a weight's codes."""
_FLOAT = 4  # bytes of an element of a weight that is not compressed


def size_table(path: str | Path) -> SizeTable:
    """Return the stored tensors of an ONNX file, and the rest of it, which is the graph.

    Dense bytes are those of the float32 model: 4 for each element of a weight or bias that is
    stored as codes, none for the scales, zero points and tables that came with the codes. Tensors
    in files beside it count. Raises CheckpointError when it is no ONNX file or a file beside it
    is missing, MissingDependency without onnx.
    """
    path = Path(path)
    model = _read(path)
    tensors = dict(_stored(model))
    external = sum(_external_bytes(tensor, path) for tensor in tensors.values())
    roles = _roles(model.graph, tensors)
    rows = tuple(_row(name, tensor, roles.get(name)) for name, tensor in tensors.items())
    rest = path.stat().st_size + external - sum(row.packed for row in rows)
    return SizeTable(rows, rest, ("graph", "operations, names, shapes"))


def _read(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingDependency("onnx", "onnx", "The size table of an ONNX file") from error
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}. Expected an ONNX file."
        ) from error
    except DecodeError as error:
        raise CheckpointError(
            f"{path}: it is no ONNX file, or it is cut off. Expected a file as export_model writes "
            "it; copy or export it again."
        ) from error
    if not model.graph.node and not model.graph.initializer:
        raise CheckpointError(f"{path}: it holds no graph. Expected an ONNX file with a model.")
    return model


def _stored(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors by name: initializers, and those of Constant nodes."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                yield node.output[0], attribute.t


def _external_bytes(tensor: Any, path: Path) -> int:
    if tensor.data_location != tensor.EXTERNAL:
        return 0
    facts = {entry.key: entry.value for entry in tensor.external_data}
    file = path.parent / facts.get("location", "")
    try:
        size = file.stat().st_size - int(facts.get("offset", 0))
    except OSError as error:
        raise CheckpointError(
            f"{path}: the file with its tensors, {file}, cannot be read: {error.strerror}. "
            "Expected both in one folder."
        ) from error
    return int(facts.get("length", size))


def _data_bytes(tensor: Any) -> int:
    """Return the bytes of a tensor's data as they stand in the file."""
    if tensor.data_location == tensor.EXTERNAL:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        return int(facts.get("length", 0))
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    data = type(tensor)()
    data.CopyFrom(tensor)
    for field in ("name", "doc_string", "dims", "data_type"):
        data.ClearField(field)
    return int(data.ByteSize())


def _roles(graph: Any, tensors: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return, for stored tensors about quantizers, what they are and elements they stand for."""
    makers = {output: node for node in graph.node for output in node.output}
    roles: dict[str, tuple[str, int]] = {}
    for node in graph.node:
        names = _QUANTIZERS.get(node.op_type, ())
        codes = _codes(node.input[0], makers, tensors) if names else {}
        if codes or node.op_type != "Where":  # that of an activation has numbers of its own
            roles |= {name: (role, 0) for role, name in zip(names, node.input[1:], strict=False)}
        roles |= codes
    return roles


def _codes(
    value: str, makers: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, tuple[str, int]]:
    """Follow the nodes that unpack a weight back to what is stored; empty for anything else."""
    roles: dict[str, tuple[str, int]] = {}
    count, table = None, False
    while value in makers and makers[value].op_type in _UNPACKING:
        node = makers[value]
        first = 1 if node.op_type == "Gather" else 0
        others = [name for name in node.input if name and name != node.input[first]]
        roles |= dict.fromkeys(others, ("to unpack", 0))
        if node.op_type == "Reshape" and count is None:
            count = element_count(tuple(_numbers(tensors.get(node.input[1]))))
        table |= node.op_type in ("Gather", "BitwiseAnd")
        value = node.input[first]
    stored = tensors.get(value)
    if stored is None or not set(roles) <= set(tensors) or _is_float(stored):
        return {}
    count = element_count(tuple(stored.dims)) if count is None else count
    wide = stored.data_type == stored.INT32
    role = "packed codes" if table else "bias codes" if wide else "codes"
    return roles | {value: (role, count)}


def _is_float(tensor: Any) -> bool:
    return tensor.data_type in (tensor.FLOAT, tensor.FLOAT16, tensor.BFLOAT16, tensor.DOUBLE)


def _numbers(tensor: Any) -> list[int]:
    from onnx import numpy_helper

    return [] if tensor is None else [int(n) for n in numpy_helper.to_array(tensor)]


def _row(name: str, tensor: Any, role: tuple[str, int] | None) -> Size:
    from onnx import TensorProto

    stored, shape = _data_bytes(tensor), tuple(tensor.dims)
    dtype = TensorProto.DataType.Name(tensor.data_type)
    if role is None:
        return Size(name, shape, dtype, stored, stored, "dense")
    return Size(name, shape, dtype, _FLOAT * role[1], stored, role[0])
