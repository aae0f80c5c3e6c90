# SPDX-License-Identifier: Apache-2.0
"""INT8 files of a given network, made by release 2.19 of the original NNCF.

    PYTHON -m benchmarks.peers.nncf219_export NETWORK STATE FOLDER

Run by the interpreter of an environment with ``torch``, ``nncf==2.19.0``, ``ninja``, ``onnx``,
``onnxscript`` and ``openvino``. ``STATE`` holds ``weights`` (a state dict for
``benchmarks.networks``), ``data`` (calibration images, [n, 3, height, width]) and ``settings``
(of the quantization, beside ``algorithm``). Writes ``nncf219.onnx`` (its ``export_model``) and
``nncf219.xml`` (OpenVINO's converter on its stripped model), the two ways that its documents
name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import openvino
import torch

from benchmarks.networks import NETWORKS
from benchmarks.peers.nncf219 import Batches, compress


def export(network: str, state: Path, folder: Path) -> None:
    """Quantize the network with ranges from the data, one image at a time, and write the files."""
    saved = torch.load(state, weights_only=True)
    model = NETWORKS[network]()
    model.load_state_dict(saved["weights"])
    images = saved["data"].split(1)
    controller, model = compress(model.eval(), Batches(*images), saved["settings"])
    model.eval()
    controller.export_model(str(folder / "nncf219.onnx"))
    converted = openvino.convert_model(controller.strip(), example_input=images[0])
    converted.reshape(list(images[0].shape))
    converted.outputs[0].get_tensor().set_names({"output"})  # it has none after the converter
    openvino.save_model(converted, folder / "nncf219.xml", compress_to_fp16=False)


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
