# SPDX-License-Identifier: Apache-2.0
"""A LiteRT file without what only takes room.

The converter joins the names of all operations that it fused, and writes a zero point of 8 bytes
for each channel of each weight and bias, all of them zero. Here names are the last one's, and
tensors with as many channels share their zeros. What the file computes is untouched.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

_ALIGNMENT = 16
"""Of the data of tensors, in bytes: the schema of the format demands it."""


def packed(data: bytes) -> bytes:
    """Return the bytes of a file that computes the same and is smaller."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    zeros: dict[int, int] = {}
    for graph in model.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for number, tensor in enumerate(graph.tensors):
            if number not in ends:
                tensor.name = _short(tensor.name)
            if tensor.quantization is not None:
                _share_zeros(tensor.quantization, zeros)
    for buffer in model.buffers:
        _align(buffer)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _short(name: bytes | str) -> bytes:
    text = name if isinstance(name, bytes) else name.encode()
    return text.partition(b";")[0][-24:]


def _share_zeros(quantization: Any, zeros: dict[int, int]) -> None:
    """Let a quantization with only zero points of zero write those of another, if there is one."""
    points = quantization.zeroPoint
    if points is None or len(points) < 2 or np.any(points) or quantization.details is not None:
        return

    def write(builder: Any) -> int:
        scales = builder.CreateNumpyVector(np.asarray(quantization.scale, np.float32))
        if len(points) not in zeros:
            zeros[len(points)] = builder.CreateNumpyVector(np.zeros(len(points), np.int64))
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scales)
        schema.QuantizationParametersAddZeroPoint(builder, zeros[len(points)])
        schema.QuantizationParametersAddQuantizedDimension(builder, quantization.quantizedDimension)
        return int(schema.QuantizationParametersEnd(builder))

    quantization.Pack = write


def _align(buffer: Any) -> None:
    data = buffer.data
    if data is None or not len(data) or buffer.size:
        return

    def write(builder: Any) -> int:
        content = bytes(bytearray(data))
        builder.StartVector(1, len(content), _ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))

    buffer.Pack = write
