# SPDX-License-Identifier: Apache-2.0
"""What one bit is worth in files and in OpenVINO: size and latency beside FP32 and INT8.

    python -m benchmarks.binary_runtime [--networks resnet20 resnet18] [--seconds 20] [--output FILE.json]

Random weights and images, batch 1, one thread. All but the first convolution and the linear layer
are binarized; "binary + INT8" quantizes those two. "binary, as floats" is the ONNX file, which holds
bits and is computed in floating point. The files take turns, one call each. Times are those of the
processor, for a machine that others use as well; the median counts.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import networks
from benchmarks.records import machine, markdown, write
from nncf import NNCFConfig, create_compressed_model, disable_logging, register_default_init_args
from nncf.openvino.run import OpenVINOFile
from nncf.torch import save_packed
from nncf.torch.export import export

SHAPES = {"resnet20": (3, 32, 32), "resnet18": (3, 224, 224)}
MAKERS = {"resnet20": networks.resnet20, "resnet18": networks.resnet18}
BINARY = {
    "algorithm": "binarization",
    "ignored_scopes": ["{re}^[^/]*/Conv2d\\[conv1\\]/", "{re}/linear_0$"],
}
INT8 = {"algorithm": "quantization"}
FORMS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "FP32": ([], "xml"),
    "INT8": ([INT8], "xml"),
    "binary": ([BINARY], "xml"),
    "binary + INT8": ([BINARY, INT8], "xml"),
    "binary, as floats": ([BINARY], "onnx"),
}


def make_file(name: str, network: nn.Module, path: Path, sections: list[dict[str, Any]]) -> int:
    """Write a compressed copy of the network; return the bytes of its packed checkpoint."""
    images = torch.randn(4, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    network = copy.deepcopy(network)
    if not sections:
        export(network, path, example_inputs=((images[:1],), {}))
        return save_packed(network, path.with_suffix(".safetensors")).total
    shape = {"sample_size": [1, *SHAPES[name]]}
    config = NNCFConfig.from_dict({"input_info": shape, "compression": sections})
    register_default_init_args(config, [(images, torch.zeros(4))])
    controller, _ = create_compressed_model(network, config, dump_graphs=False)
    controller.export_model(str(path))
    return save_packed(controller.strip(), path.with_suffix(".safetensors")).total


def measure(name: str, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Return a record for each form of a network: bytes of its files and milliseconds."""
    torch.manual_seed(0)
    network = networks.initialize(MAKERS[name]()).eval()
    image = torch.randn(1, *SHAPES[name]).numpy()
    records, opened, times = [], [], []
    for label, (sections, ending) in FORMS.items():
        path = folder / f"{name}-{len(records)}.{ending}"
        packed = make_file(name, network, path, sections)
        parts = [path, path.with_suffix(".bin")] if ending == "xml" else [path]
        records.append({"network": name, "form": label, "file": parts[-1].stat().st_size,
                        "packed": packed})  # fmt: skip
        opened.append(OpenVINOFile(path, threads=1))
        times.append([])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for file, spent in zip(opened, times, strict=True):
            start = time.process_time()
            file({file.input_names[0]: image})
            spent.append(time.process_time() - start)
    for record, spent in zip(records, times, strict=True):
        record["milliseconds"] = 1000 * statistics.median(spent[len(spent) // 10 :])
    return records


def report(records: list[dict[str, Any]]) -> str:
    first = {record["network"]: record for record in reversed(records) if record["form"] == "FP32"}
    rows = []
    for record in records:
        base = first[record["network"]]
        rows.append(
            [
                *(record["network"], record["form"]),
                *(f"{record[key] / 1000:,.0f}" for key in ("file", "packed")),
                *(f"{record['milliseconds']:.3f}",),
                f"{base['milliseconds'] / record['milliseconds']:.2f} ×",
            ]
        )
    header = ["network", "form", "weights in the file, kB", "packed checkpoint, kB", "ms", "faster"]
    return markdown(header, rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=[*MAKERS], default=[*MAKERS])
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each network")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    disable_logging()
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.networks:
            records += measure(name, Path(folder), chosen.seconds)
    write(chosen.output, {"machine": machine(), "records": records})
    print(report(records))


if __name__ == "__main__":
    main()
