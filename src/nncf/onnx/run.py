# SPDX-License-Identifier: Apache-2.0
"""Running an ONNX file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.errors import ExportError, MissingDependency, UnsupportedFormat

Array = NDArray[Any]


class OnnxFile:
    """A model in ONNX Runtime on the processor; call it with arrays by name of input.

    ``threads`` 0 leaves the number to the runtime. Its threads sleep between calls
    (``session.intra_op.allow_spinning=0``), so that other work on the machine is undisturbed.
    Raises ExportError when the runtime refuses the file.
    """

    runtime = "ONNX Runtime"

    def __init__(self, model: str | Path | bytes, *, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependency("onnxruntime", "onnx", "Running an ONNX file") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = model if isinstance(model, bytes) else str(model)
        try:
            self.session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions share no other base
            raise ExportError(f"ONNX Runtime does not take the exported model: {error}") from error
        self.input_names = tuple(item.name for item in self.session.get_inputs())
        self.output_names = tuple(item.name for item in self.session.get_outputs())

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs by name; arrays for inputs that the model lacks are not passed."""
        fed = {name: np.asarray(inputs[name]) for name in self.input_names}
        return dict(zip(self.output_names, self.session.run(None, fed), strict=True))

    def zeros(self) -> dict[str, Array]:
        """Return inputs of the right shapes and types, all zero; open axes have one element."""
        return {
            item.name: np.zeros(
                [size if isinstance(size, int) else 1 for size in item.shape],
                _DTYPES.get(item.type, np.float32),
            )
            for item in self.session.get_inputs()
        }


_DTYPES: dict[str, Any] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
"""Types of inputs in ONNX Runtime's words; all others are float."""


def check_opset(opset: int) -> None:
    """Raise UnsupportedFormat when the ONNX Runtime that is installed does not read the opset."""
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "one", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    try:
        OnnxFile(model.SerializeToString(), threads=1)
    except ExportError as error:
        raise UnsupportedFormat(
            f'"onnx_{opset}": ONNX Runtime {onnxruntime.__version__}, which must run the file to prove '
            f'it, does not read opset {opset}. Expected: an older opset, or "onnx", which leaves the '
            "choice to the export."
        ) from error
