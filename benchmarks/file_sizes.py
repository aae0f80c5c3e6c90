# SPDX-License-Identifier: Apache-2.0
"""Size of every kind of file with weights of 8 to 2 bits, and what packing costs in latency.

    python -m benchmarks.file_sizes [--networks resnet18 mobilenet_v2] [--bits 8 4 3 2]
        [--seconds 20] [--threads 2] [--processor-time] [--all-layers] [--output FILE.json]

Random weights and data, scales that clip a little as trained ones do, batch norms of both signs,
activations of 8 bits, batch 1, 224×224. Files: the FP32 ONNX file and ``torch.save`` of the state
dict, before and after compression; our ONNX file, the same with a byte for each weight
(``onnx_int8``), the OpenVINO IR and the packed checkpoint. The first and the last layer keep 8 bits
as by default, unless ``--all-layers``. Times of the packed ONNX file and of the IR are divided by
those of the file with bytes; the files take turns, one call each. ``--processor-time`` counts the
processor's time, for a machine that others use as well; with it, use one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import networks
from benchmarks.latency import IMAGES, SETTINGS, SHAPE
from benchmarks.records import machine, markdown, measure_each
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.onnx.run import OnnxFile
from nncf.openvino.run import OpenVINOFile
from nncf.torch import save_packed
from nncf.torch.export import export

PACKED, BYTES = "ONNX", "ONNX, a byte each"
FILES = {PACKED: ("m.onnx", None), BYTES: ("bytes.onnx", "onnx_int8"), "IR": ("m.xml", None)}
CLIPPED = 0.6
"""Part of the largest weight that is the range: the lowest code then occurs in most channels."""


def new_network(name: str) -> nn.Module:
    """Return a network of random weights whose batch norms turn the sign of some channels."""
    torch.manual_seed(0)
    network = networks.initialize(networks.NETWORKS[name]()).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= torch.where(torch.rand(module.num_features) < 0.1, -1, 1)
    return network


def compressed(network: nn.Module, bits: int, *, all_layers: bool) -> tuple[Any, nn.Module]:
    weights = {"bits": bits, "per_channel": True}
    section: dict[str, Any] = {"algorithm": "quantization", "weights": weights, **SETTINGS}
    if all_layers:
        section["first_and_last_bits"] = None
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, *SHAPE]},
            "target_device": "TRIAL",
            "compression": section,
        }
    )
    data = torch.randn(IMAGES, *SHAPE)
    register_default_init_args(config, [(x, torch.zeros(1)) for x in data.split(1)])
    controller, model = create_compressed_model(network, config, dump_graphs=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "|WEIGHT" in name and name.endswith("scale"):
                parameter.mul_(CLIPPED)
    return controller, model


def bytes_of(path: Path) -> int:
    """Return the bytes of a file, with the weights of an IR."""
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(file.stat().st_size for file in files)


def state_bytes(model: nn.Module, folder: Path) -> int:
    path = folder / "state.pt"
    torch.save(model.state_dict(), path)
    return bytes_of(path)


def make_files(name: str, bits: int, folder: Path, *, all_layers: bool) -> dict[str, int]:
    """Write all files of one network at so many bits; return their sizes by label."""
    network = new_network(name)
    floating = folder / "fp32.onnx"
    if not floating.exists():
        export(network, floating, example_inputs=((torch.randn(1, *SHAPE),), {}))
    found = {"FP32 ONNX": bytes_of(floating), "FP32 torch.save": state_bytes(network, folder)}
    controller, model = compressed(network, bits, all_layers=all_layers)
    found["compressed torch.save"] = state_bytes(model, folder)
    for label, (file, save_format) in FILES.items():
        report = controller.export_model(str(folder / file), save_format=save_format)
        found[label] = report.sizes.total
    found["packed checkpoint"] = save_packed(controller.strip(), folder / "m.safetensors").total
    return found


def relative_times(
    folder: Path, *, threads: int, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the median times of packed files over those of bytes, by runtime and file."""
    pairs = {(label, file): folder / name for label, (name, _) in FILES.items()
             for file in (OnnxFile, OpenVINOFile) if label != "IR" or file is OpenVINOFile}  # fmt: skip
    opened = {key: key[1](path, threads=threads) for key, path in pairs.items()}
    times: dict[Any, list[float]] = {key: [] for key in opened}
    x = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    draw, keys = np.random.default_rng(0), list(opened)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[keys[0]]) < 20:
        for index in draw.permutation(len(keys)):
            run = opened[keys[index]]
            start = clock()
            run({run.input_names[0]: x})
            times[keys[index]].append(clock() - start)
    medians = {key: statistics.median(found[5:]) for key, found in times.items()}
    return {
        f"{label}, {file.runtime}": median / medians[BYTES, file]
        for (label, file), median in medians.items()
        if label != BYTES
    }


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    clock = time.process_time if arguments.processor_time else time.perf_counter
    record: dict[str, Any] = {}
    for bits in arguments.bits:
        sizes = make_files(name, bits, folder, all_layers=arguments.all_layers)
        ratios = relative_times(
            folder, threads=arguments.threads, seconds=arguments.seconds, clock=clock
        )
        record[str(bits)] = {"bytes": sizes, "time / time with a byte each": ratios}
    labels = list(next(iter(record.values()))["bytes"])
    base = {label: "FP32 torch.save" if "save" in label or "packed" in label else "FP32 ONNX"
            for label in labels}  # fmt: skip
    rows = [[bits, *(cell(row["bytes"], label, base[label]) for label in labels)]
            for bits, row in record.items()]  # fmt: skip
    print(f"\n{markdown([f'{name}, bits of weights; MB (smaller)', *labels], rows)}\n")
    labels = list(next(iter(record.values()))["time / time with a byte each"])
    rows = [
        [bits, *(f"{row['time / time with a byte each'][label]:.2f}" for label in labels)]
        for bits, row in record.items()
    ]
    print(f"{markdown([f'{name}, time / time with a byte each', *labels], rows)}\n")
    return record


def cell(sizes: dict[str, int], label: str, base: str) -> str:
    return f"{sizes[label] / 1e6:.2f} ({sizes[base] / sizes[label]:.1f} ×)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS,
                        default=["resnet18", "mobilenet_v2"])  # fmt: skip
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="count the process's time")
    parser.add_argument("--all-layers", action="store_true", help="first and last layer too")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{json.dumps(machine())}\n{arguments.threads} threads used")
    measure_each(measure, arguments)


if __name__ == "__main__":
    main()
