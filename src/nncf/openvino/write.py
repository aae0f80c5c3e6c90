# SPDX-License-Identifier: Apache-2.0
"""Writing OpenVINO's intermediate representation (IR): ``model.xml`` and ``model.bin``."""

from __future__ import annotations

from pathlib import Path

from nncf.errors import ExportError, MissingDependency
from nncf.openvino.two_level import store_bits


def write_ir(model: bytes, path: Path) -> None:
    """Convert a serialized ONNX model and write the IR to ``path`` (``.xml``, ``.bin`` beside).

    int8 weights stay int8, those of binary convolutions become bits. Float weights stay float32:
    halving them to float16, which the converter does by default, would change what the trained model
    computes. Raises ExportError when OpenVINO cannot convert the model.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency("openvino", "openvino", "Writing an OpenVINO IR") from error
    try:
        converted = openvino.Core().read_model(model)
        store_bits(converted)
        openvino.save_model(converted, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot convert the model: {error}") from error
