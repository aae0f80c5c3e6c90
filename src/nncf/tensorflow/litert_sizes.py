# SPDX-License-Identifier: Apache-2.0
"""Where every byte of a LiteRT file goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from nncf.compression.sizes import Size, SizeTable
from nncf.errors import CheckpointError

_FLOAT = 4  # bytes of an element of a weight that is not compressed

_CODES = ("INT8", "INT4", "INT32", "INT64")


def size_table(path: str | Path) -> SizeTable:
    """Return the stored tensors of a LiteRT file, and the rest of it, which is the graph.

    Dense bytes are those of the float32 model: 4 for each element of a weight or bias that is
    stored as codes. Scales and zero points belong to the graph. Raises CheckpointError when it is
    no LiteRT file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}. Expected a LiteRT file."
        ) from error
    if data[4:8] != b"TFL3":
        raise CheckpointError(
            f"{path}: it is no LiteRT file. Expected one as export_model writes it."
        )
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    rows, seen = [], set[int]()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            stored = model.buffers[tensor.buffer].data
            if stored is None or not len(stored):
                continue
            rows.append(_row(tensor, 0 if tensor.buffer in seen else len(stored)))
            seen.add(tensor.buffer)
    rest = len(data) - sum(row.packed for row in rows)
    return SizeTable(tuple(rows), rest, ("graph", "operations, names, scales"))


_TYPES = {
    number: name for name, number in vars(schema.TensorType).items() if not name.startswith("_")
}


def _row(tensor: Any, stored: int) -> Size:
    name = tensor.name.decode() if isinstance(tensor.name, bytes) else str(tensor.name)
    shape = tuple(int(n) for n in (tensor.shape if tensor.shape is not None else ()))
    dtype = _TYPES.get(tensor.type, str(tensor.type))
    quantization = tensor.quantization
    scaled = quantization is not None and quantization.scale is not None
    if scaled and dtype in _CODES:
        dense = _FLOAT * int(np.prod(shape)) if stored else 0
        return Size(name, shape, dtype, dense, stored, "codes")
    return Size(name, shape, dtype, stored, stored, "dense")
