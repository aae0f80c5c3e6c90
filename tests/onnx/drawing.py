# SPDX-License-Identifier: Apache-2.0
"""Small ONNX models for tests: drawn node by node, and run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)


class Drawing:
    """Builds an ONNX model node by node, in the form that PyTorch's exporter writes."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.inputs = inputs
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def store(self, data: np.ndarray) -> str:
        name = f"stored_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(data), name))
        return name

    def add(self, op: str, *inputs: object, **attributes: object) -> str:
        names = [x if isinstance(x, str) else self.store(x) for x in inputs]  # type: ignore[arg-type]  # arrays
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def quantize(
        self, x: object, scale: object, zero: int = 0, *, signed: bool = False, axis: int = 1
    ) -> str:
        scale = np.asarray(scale, np.float32)
        point = np.full(scale.shape, zero, np.int8 if signed else np.uint8)
        codes = self.add("QuantizeLinear", x, scale, point, axis=axis)
        scale_name, zero_name = self.nodes[-1].input[1:]
        return self.add("DequantizeLinear", codes, scale_name, zero_name, axis=axis)

    def weight(self, shape: tuple[int, ...], *, codes: np.ndarray | None = None) -> str:
        """A weight per channel on axis 0; ``codes`` in −128…127."""
        scale = RANDOM.uniform(0.01, 0.02, shape[0]).astype(np.float32)
        codes = RANDOM.integers(-63, 64, shape) if codes is None else codes
        data = (codes * scale.reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)
        return self.quantize(data, scale, signed=True, axis=0)

    def finish(self, output: str) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "drawing",
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
                for n, s in self.inputs.items()
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.stored,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model).SerializeToString()


def run(
    data: bytes, x: np.ndarray, *, optimize: bool = True, keep: Path | None = None
) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def operations(data: bytes, tmp_path: Path, x: np.ndarray) -> Counter[str]:
    """Return the operations that ONNX Runtime really runs."""
    run(data, x, keep=tmp_path / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def conv_norm(
    drawing: Drawing, x: str, factor: np.ndarray, *, codes: np.ndarray | None = None
) -> str:
    """A convolution of 3 to len(factor) channels and a batch norm with the given gamma."""
    y = drawing.add("Conv", x, drawing.weight((len(factor), 3, 3, 3), codes=codes))
    rest = [RANDOM.normal(size=len(factor)).astype(np.float32) for _ in range(2)]
    variance = RANDOM.uniform(0.5, 2, len(factor)).astype(np.float32)
    return drawing.add("BatchNormalization", y, factor.astype(np.float32), *rest, variance)


def image(channels: int = 3) -> np.ndarray:
    return RANDOM.uniform(0, 2, (1, channels, 8, 8)).astype(np.float32)
