# SPDX-License-Identifier: Apache-2.0
"""Running an ONNX file or an OpenVINO IR in OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.errors import ExportError, MissingDependency

Array = NDArray[Any]


class OpenVINOFile:
    """A model in OpenVINO on the processor; call it with arrays by name of input.

    What is not quantized runs in float32: on processors with bfloat16 OpenVINO would otherwise
    choose that, and the comparison with the trained model would measure bfloat16. ``threads`` 0
    leaves the number to the runtime. Raises ExportError when the runtime refuses the file.
    """

    runtime = "OpenVINO"

    def __init__(self, model: str | Path | bytes, *, threads: int = 0) -> None:
        try:
            import openvino
        except ImportError as error:
            raise MissingDependency(
                "openvino", "openvino", "Running a model in OpenVINO"
            ) from error
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            read = core.read_model(model if isinstance(model, bytes) else str(model))
            self.input_names = tuple(port.get_any_name() for port in read.inputs)
            self.output_names = tuple(port.get_any_name() for port in read.outputs)
            self.request = core.compile_model(read, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise ExportError(f"OpenVINO does not take the exported model: {error}") from error

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs by name; arrays for inputs that the model lacks are not passed."""
        fed = [np.asarray(inputs[name]) for name in self.input_names]
        results = self.request.infer(fed)
        return {name: np.array(results[index]) for index, name in enumerate(self.output_names)}

    def zeros(self) -> dict[str, Array]:
        """Return inputs of the right shapes and types, all zero; open axes have one element."""
        tensors = self.request.get_compiled_model().inputs
        return {
            name: np.zeros(
                [1 if size.is_dynamic else size.get_length() for size in port.partial_shape],
                port.element_type.to_dtype(),
            )
            for name, port in zip(self.input_names, tensors, strict=True)
        }
