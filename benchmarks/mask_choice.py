# SPDX-License-Identifier: Apache-2.0
"""Time of one choice of all masks of ResNet-50, by importance, pattern and mode.

    python -m benchmarks.mask_choice [--repeat 5] [--threads 2] [--device cuda]

What magnitude sparsity does whenever a level is set: once an epoch, or once an optimizer step.
The budget is half a second.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.networks import resnet50
from benchmarks.records import machine, markdown, write
from nncf import NNCFConfig, create_compressed_model

VARIANTS: dict[str, dict[str, Any]] = {
    "normed_abs": {},
    "abs": {"weight_importance": "abs"},
    "local levels": {"sparsity_level_setting_mode": "local"},
    "pattern 2:4": {"pattern": "2:4"},
    "pattern 4:8": {"pattern": "4:8"},
    "pattern 8:16": {"pattern": "8:16"},
}


def choice_seconds(
    network: nn.Module, params: dict[str, Any], arguments: argparse.Namespace
) -> tuple[float, float]:
    """Return the median seconds of a choice, and the level that the masks then have."""
    model = copy.deepcopy(network)
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 3, 64, 64]},
            "compression": {"algorithm": "magnitude_sparsity", "params": params},
        }
    )
    controller, _ = create_compressed_model(model, config, dump_graphs=False)
    found = []
    for _ in range(arguments.repeat + 1):  # the first turn warms up
        start = time.perf_counter()
        controller.set_sparsity_level(0.45)
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    layers = controller.statistics().magnitude_sparsity.model_statistics
    return statistics.median(found[1:]), layers.sparsity_level_for_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(machine()))
    torch.manual_seed(0)
    network = resnet50().to(arguments.device)
    results = {name: choice_seconds(network, v, arguments) for name, v in VARIANTS.items()}
    rows = [[name, f"{cost * 1e3:.0f}", f"{level:.4f}"] for name, (cost, level) in results.items()]
    print(markdown(["choice", "ms", "level reached"], rows))
    write(arguments.output, {"machine": machine(), "seconds": results})


if __name__ == "__main__":
    main()
