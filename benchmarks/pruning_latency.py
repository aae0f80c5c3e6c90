# SPDX-License-Identifier: Apache-2.0
"""What removed channels are worth beside INT8: latency of pruned + INT8 against INT8 alone.

    python -m benchmarks.pruning_latency [--networks resnet56 resnet18] [--level 0.4] [--seconds 30]

Batch 1, 224×224, random weights and data; resnet56 has the 16, 32 and 64 channels of the network
for CIFAR-10. ``--level`` is the share of filters that goes (of FLOPs with ``--flops``), ranked
over all layers. Files of one network are timed in turn (``benchmarks.latency``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import networks
from benchmarks.latency import IMAGES, SETTINGS, SHAPE, open_file, table, time_in_turn
from benchmarks.records import machine, measure_each
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.torch.export import export


def pruning(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the section that prunes at once."""
    target = "pruning_flops_target" if arguments.flops else "pruning_target"
    params = {"schedule": "baseline", target: arguments.level, "all_weights": True}
    params |= {"prune_first_conv": True, "prune_downsample_convs": True}
    return {"algorithm": "filter_pruning", "params": params}


def make_files(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Write FP32, INT8, pruned, and pruned + INT8 files of one network; return them by label."""
    data = torch.randn(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(0))
    sections = {
        "INT8": [{"algorithm": "quantization", **SETTINGS}],
        "pruned": [pruning(arguments)],
        "pruned, INT8": [pruning(arguments), {"algorithm": "quantization", **SETTINGS}],
    }
    files = {"FP32": folder / "fp32.onnx"}
    network = networks.initialize(networks.NETWORKS[name]()).eval()
    export(network, files["FP32"], example_inputs=((data[:1],), {}))
    for label, compression in sections.items():
        network = networks.initialize(networks.NETWORKS[name]()).eval()
        config = NNCFConfig.from_dict(
            {"input_info": {"sample_size": [1, *SHAPE]}, "compression": compression}
        )
        register_default_init_args(config, [(x, torch.zeros(1)) for x in data.split(1)])
        controller, _ = create_compressed_model(network, config, dump_graphs=False)
        controller.scheduler.epoch_step()
        files[label] = folder / f"{label.replace(', ', '_')}.onnx"
        controller.export_model(str(files[label]))
        if controller.statistics().filter_pruning is not None and len(compression) == 1:
            print(controller.statistics().filter_pruning.model_statistics.to_str())
    return files


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    files = make_files(name, folder, arguments)
    opened = [
        item for label, path in files.items() for item in open_file(label, path, arguments.threads)
    ]
    time_in_turn(opened, arguments.seconds)
    print(f"\n{name}, {len(opened[0].times)} calls each\n\n{table(opened)}\n")
    found: dict[str, Any] = {}
    for runtime in dict.fromkeys(item.runtime for item in opened):
        medians = {item.label: item.median for item in opened if item.runtime == runtime}
        found[runtime] = medians["INT8 (.onnx)"] / medians["pruned, INT8 (.onnx)"]
        print(f"{name}, {runtime}: pruned + INT8 is {found[runtime]:.2f} × as fast as INT8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=["resnet56"])
    parser.add_argument("--level", type=float, default=0.4)
    parser.add_argument("--flops", action="store_true", help="the level is of FLOPs")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{json.dumps(machine())}\n{arguments.threads} threads used")
    measure_each(measure, arguments)


if __name__ == "__main__":
    main()
