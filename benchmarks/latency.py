# SPDX-License-Identifier: Apache-2.0
"""Latency of the exported files: FP32 against INT8, in OpenVINO and in ONNX Runtime.

    python -m benchmarks.latency [--networks resnet18 mobilenet_v2] [--seconds 30] [--threads 2]
        [--peer nncf219=PYTHON] [--other NAME=FILE]

Batch 1, 224×224, random weights and data. All files of one network are timed in turn, one call
each in an order that changes from turn to turn, and the medians compared: what disturbs the
machine disturbs all of them. Our files are those of ``create_compressed_model`` and
``export_model`` with default settings. Beside them stand the file of ONNX Runtime's own
``quantize_static`` (uint8 activations, int8 weights), with ``--peer`` those that release 2.19 of
the original NNCF makes of the same weights and data, in the interpreter given, and with
``--other`` any further file (``.onnx`` runs in both runtimes, ``.xml`` in OpenVINO). OpenVINO
computes in float32 what is not INT8, also on processors with bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.records import machine, markdown, measure_each
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.errors import ExportError
from nncf.onnx.run import OnnxFile
from nncf.openvino.run import OpenVINOFile
from nncf.torch.export import export

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (3, 224, 224)
IMAGES = 8  # for calibration
SETTINGS = {
    "initializer": {
        "range": {"num_init_samples": IMAGES},
        "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
    }
}
"""Settings of the quantization, ours and the peer's: defaults, for few and random images."""
ONNX_RUNTIME, OPENVINO = OnnxFile.runtime, OpenVINOFile.runtime


@dataclass
class Timed:
    """One file in one runtime, and the milliseconds of its calls."""

    runtime: str
    label: str
    path: Path
    run: OnnxFile | OpenVINOFile
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def mebibytes(self) -> float:
        """Size of the file, with the weights of an IR."""
        files = [self.path]
        if self.path.suffix == ".xml":
            files.append(self.path.with_suffix(".bin"))
        return sum(file.stat().st_size for file in files) / 2**20


def open_file(label: str, path: Path, threads: int) -> list[Timed]:
    """Open a file in the runtimes that can read it; ONNX Runtime may refuse a peer's."""
    name = f"{label} ({path.suffix})"
    opened = [Timed(OPENVINO, name, path, OpenVINOFile(path, threads=threads))]
    if path.suffix == ".onnx":
        try:
            opened.append(Timed(ONNX_RUNTIME, name, path, OnnxFile(path, threads=threads)))
        except ExportError as error:
            print(f"{name}: {str(error).splitlines()[0][:200]}")
    return opened


def make_files(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, list[Path]]:
    """Write all files of one network; return them by label."""
    torch.manual_seed(0)
    network = networks.initialize(networks.NETWORKS[name]()).eval()
    data = torch.randn(IMAGES, *SHAPE)
    floating = folder / "fp32.onnx"
    export(network, floating, example_inputs=((data[:1],), {}))
    files = {"FP32": [floating], "quantize_static": [quantize_static(floating, data)]}
    for item in arguments.peer:
        module, _, python = item.partition("=")
        files[f"INT8, {module}"] = peer_files(name, module, python, (network, data), folder)
    files["INT8, nncf"] = our_files(network, data, folder)  # last: it compresses in place
    for item in arguments.other:
        label, _, path = item.partition("=")
        files[label] = [Path(path)]
    return files


def our_files(network: nn.Module, data: Tensor, folder: Path) -> list[Path]:
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, *SHAPE]},
            "compression": {"algorithm": "quantization", **SETTINGS},
        }
    )
    register_default_init_args(config, [(x, torch.zeros(1)) for x in data.split(1)])
    controller, _ = create_compressed_model(network, config, dump_graphs=False)
    paths = [folder / "int8.onnx", folder / "int8.xml"]
    for path in paths:
        controller.export_model(str(path))
    return paths


def peer_files(
    name: str, module: str, python: str, made: tuple[nn.Module, Tensor], folder: Path
) -> list[Path]:
    """Let another tool quantize the same network with the same data."""
    network, data = made
    state = folder / "state.pt"
    torch.save({"weights": network.state_dict(), "data": data, "settings": SETTINGS}, state)
    program = [str(Path(python).absolute()), "-m", f"benchmarks.peers.{module}_export"]
    command = [*program, name, str(state), str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{module} failed:\n{done.stderr[-2000:]}")
    return sorted(folder.glob(f"{module}.onnx")) + sorted(folder.glob(f"{module}.xml"))


def quantize_static(path: Path, data: Tensor) -> Path:
    """Quantize with ONNX Runtime's own tool, per channel, uint8 activations, int8 weights."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Tensor] = iter(data.split(1))

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.rest, None)
            return None if sample is None else {"input.0": sample.numpy()}

    prepared, result = path.with_suffix(".prepared.onnx"), path.with_name("static.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        result,
        Samples(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return result


def time_in_turn(opened: list[Timed], seconds: float) -> None:
    """Call each runner once a turn, in an order that is drawn anew each time."""
    x = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    for item in opened:
        for _ in range(5):
            item.run({item.run.input_names[0]: x})
    draw = np.random.default_rng(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for index in draw.permutation(len(opened)):
            item = opened[index]
            start = time.perf_counter()
            item.run({item.run.input_names[0]: x})
            item.times.append(1000 * (time.perf_counter() - start))


def table(opened: list[Timed]) -> str:
    """Return one row for each file and runtime."""
    base = {item.runtime: item.median for item in opened if item.label.startswith("FP32")}
    rows = []
    for item in sorted(opened, key=lambda item: (item.runtime, -item.median)):
        low, _, high = statistics.quantiles(item.times, n=4)
        faster = f"{base[item.runtime] / item.median:.2f} ×"
        rows.append(
            [item.runtime, item.label, f"{item.median:.2f}", f"{low:.2f} to {high:.2f}",
             faster, f"{item.mebibytes:.1f}"]
        )  # fmt: skip
    header = ["runtime", "file", "median, ms", "middle half, ms", "faster", "size, MiB"]
    return markdown(header, rows)


def ratios(opened: list[Timed]) -> dict[str, float]:
    """Return how long our files take, relative to those of others of the same kind."""
    found = {(item.runtime, item.label): item.median for item in opened}
    pairs = {
        "nncf / quantize_static, ONNX Runtime": (
            (ONNX_RUNTIME, "INT8, nncf (.onnx)"),
            (ONNX_RUNTIME, "quantize_static (.onnx)"),
        )
    }
    for ending in (".xml", ".onnx"):
        pairs[f"nncf / nncf219, OpenVINO, {ending}"] = (
            (OPENVINO, f"INT8, nncf ({ending})"),
            (OPENVINO, f"INT8, nncf219 ({ending})"),
        )
    return {
        name: found[ours] / found[other]
        for name, (ours, other) in pairs.items()
        if ours in found and other in found
    }


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    opened = [
        item
        for label, paths in make_files(name, folder, arguments).items()
        for path in paths
        for item in open_file(label, path, arguments.threads)
    ]
    time_in_turn(opened, arguments.seconds)
    found = ratios(opened)
    print(f"\n{name}, {len(opened[0].times)} calls each\n\n{table(opened)}\n")
    for label, value in found.items():
        print(f"{label}: {value:.3f}")
    medians = {f"{item.runtime}: {item.label}": item.median for item in opened}
    sizes = {item.label: item.mebibytes for item in opened}
    return {"median_ms": medians, "ratios": found, "mebibytes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS,
                        default=["resnet18", "mobilenet_v2"])  # fmt: skip
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="append", default=[], metavar="nncf219=PYTHON")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    if any(not item.startswith("nncf219=") for item in arguments.peer):
        parser.error("--peer: expected nncf219=PYTHON, the only peer that writes files")
    torch.set_num_threads(arguments.threads)
    print(f"{json.dumps(machine())}\n{arguments.threads} threads used")
    measure_each(measure, arguments)


if __name__ == "__main__":
    main()
