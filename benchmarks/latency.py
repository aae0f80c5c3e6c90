# SPDX-License-Identifier: Apache-2.0
"""How fast are the exported files? FP32 against INT8, in OpenVINO and in ONNX Runtime.

    python -m benchmarks.latency [--networks resnet18 mobilenet_v2] [--seconds 20] [--threads 2]

Batch 1, 224×224, random weights and data. All files of one network are timed in turn, one call
each, and the medians compared: what disturbs the machine disturbs all of them. Beside our files
stands the one of ONNX Runtime's own ``quantize_static`` (uint8 activations, int8 weights) and,
with ``--other name=path``, any further file (``.onnx`` runs in both runtimes, ``.xml`` in
OpenVINO). OpenVINO computes in float32 what is not INT8, also on processors with bfloat16.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import native, networks
from nncf.onnx.run import OnnxFile
from nncf.openvino.run import OpenVINOFile
from nncf.torch.export import export

Runner = OnnxFile | OpenVINOFile
SHAPE = (1, 3, 224, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--other", nargs="*", default=[], metavar="NAME=PATH")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine(arguments.threads))
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            runners = make_files(name, Path(folder), threads=arguments.threads)
            for item in arguments.other:
                label, _, path = item.partition("=")
                runners |= open_file(label, Path(path), threads=arguments.threads)
            print_table(name, time_in_turn(runners, arguments.seconds), runners)


def machine(threads: int) -> str:
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{model}, {os.cpu_count()} cores, {threads} threads used; load before: {load}"


def make_files(name: str, folder: Path, *, threads: int) -> dict[str, Runner]:
    """Write the files of one network and open each in the runtimes that it is for."""
    torch.manual_seed(0)
    network = networks.initialize(networks.NETWORKS[name]()).eval()
    data = torch.randn(4, *SHAPE[1:])
    inputs = ((data[:1],), {})
    export(network, folder / "fp32.onnx", example_inputs=inputs)
    runners = open_file("FP32", folder / "fp32.onnx", threads=threads)
    runners |= open_file(
        "INT8, quantize_static", quantize_static(folder / "fp32.onnx", data), threads=threads
    )
    quantized = quantized_network(network, data)
    export(quantized, folder / "int8.onnx", example_inputs=inputs)
    export(quantized, folder / "int8.xml", example_inputs=inputs)
    runners |= open_file("INT8, ours (.onnx)", folder / "int8.onnx", threads=threads)
    return runners | open_file("INT8, ours (.xml)", folder / "int8.xml", threads=threads)


def quantized_network(network: nn.Module, data: torch.Tensor) -> nn.Module:
    return native.quantize(network, data, per_channel_depthwise=True)


def open_file(label: str, path: Path, *, threads: int) -> dict[str, Runner]:
    kinds = [OpenVINOFile] if path.suffix == ".xml" else [OnnxFile, OpenVINOFile]
    return {f"{kind.runtime}: {label}": kind(path, threads=threads) for kind in kinds}


def quantize_static(path: Path, data: torch.Tensor) -> Path:
    """Quantize with ONNX Runtime's own tool, per channel, uint8 activations, int8 weights."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[torch.Tensor] = iter(data.split(1))

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.rest, None)
            return None if sample is None else {"input.0": sample.numpy()}

    prepared, result = path.with_suffix(".prepared.onnx"), path.with_suffix(".static.onnx")
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


def time_in_turn(runners: dict[str, Runner], seconds: float) -> dict[str, list[float]]:
    """Return the milliseconds of each call; one call of each runner after the other."""
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    times: dict[str, list[float]] = {label: [] for label in runners}
    for runner in runners.values():
        for _ in range(5):
            runner({runner.input_names[0]: x})
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for label, runner in runners.items():
            start = time.perf_counter()
            runner({runner.input_names[0]: x})
            times[label].append(1000 * (time.perf_counter() - start))
    return times


def print_table(name: str, times: dict[str, list[float]], runners: dict[str, Runner]) -> None:
    medians = {label: statistics.median(values) for label, values in times.items()}
    print(f"\n{name}, {len(next(iter(times.values())))} calls each")
    for label, median in sorted(medians.items()):
        base = medians[f"{runners[label].runtime}: FP32"]
        print(f"  {label:45} {median:8.2f} ms   {base / median:5.2f} × faster than FP32")
    static = medians["ONNX Runtime: INT8, quantize_static"]
    ours = medians["ONNX Runtime: INT8, ours (.onnx)"]
    print(f"  ours / quantize_static in ONNX Runtime: {ours / static:.3f}")


if __name__ == "__main__":
    main()
