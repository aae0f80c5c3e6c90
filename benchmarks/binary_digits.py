# SPDX-License-Identifier: Apache-2.0
"""What one bit costs: scikit-learn's digits, XNOR and DoReFa weights, binary activations.

    python -m benchmarks.binary_digits [--seeds 5] [--output FILE.json]

A small network is trained in floating point on 700 images. From there each row trains with the
same images and order: in floating point, with binary weights alone, and with binary weights and
activations. The first convolution and the linear layer keep their 32 bits, or have 8 in the rows
that say so. The last epoch counts, none is picked.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.distillation_digits import Batches, Data, network, train
from benchmarks.records import machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, disable_logging, register_default_init_args

NEVER = 10_000
ENDS = ["Sequential/Conv2d[0]/conv2d_0", "{re}/linear_0$"]
"""The first convolution and the last layer, which stay out."""

ROWS: dict[str, list[dict[str, Any]]] = {
    "FP32": [],
    **{
        f"{mode}, {bits}": [
            {"algorithm": "binarization", "mode": mode, "ignored_scopes": ENDS, **params}
        ]
        for mode in ("xnor", "dorefa")
        for bits, params in {
            "weights 1, activations 32": {
                "params": {"weights_quant_start_epoch": 0, "activations_quant_start_epoch": NEVER}
            },
            "weights 1, activations 1": {},
        }.items()
    },
    "xnor, weights 1, activations 1, the rest 8": [
        {"algorithm": "binarization", "mode": "xnor", "ignored_scopes": ENDS},
        {"algorithm": "quantization"},
    ],
}
"""The compression sections of each row."""


def trained(
    model: nn.Module, batches: Batches, sections: list[dict[str, Any]], plan: tuple[int, float]
) -> nn.Module:
    """Return a copy of the model, compressed and trained."""
    model = copy.deepcopy(model)
    controller = None
    if sections:
        config = NNCFConfig.from_dict({"compression": sections})
        register_default_init_args(config, batches)
        controller, model = create_compressed_model(model, config, dump_graphs=False)
        controller.scheduler.epoch_step()
    train(model, batches, plan, controller)
    return model if controller is None else controller.strip()


def measure(data: Data, chosen: argparse.Namespace) -> dict[str, list[float]]:
    """Return the accuracies in percent, one for each seed, by row."""
    found: dict[str, list[float]] = {name: [] for name in ("start", *ROWS)}
    for seed in range(chosen.seeds):
        torch.manual_seed(seed)
        model = network(chosen.width)
        train(model, Batches(data, seed), (chosen.baseline_epochs, 0.05))
        found["start"].append(data.accuracy(model))
        for name, sections in ROWS.items():
            torch.manual_seed(seed)
            start = time.perf_counter()
            result = trained(
                model, Batches(data, seed + 100), sections, (chosen.epochs, chosen.rate)
            )
            found[name].append(data.accuracy(result))
            seconds = time.perf_counter() - start
            print(f"# seed {seed}, {name}: {found[name][-1]:.2f} % ({seconds:.0f} s)", flush=True)
    return found


def report(found: dict[str, list[float]]) -> str:
    floating, _ = mean_and_spread(found["FP32"])
    rows = []
    for name, values in found.items():
        mean, spread = mean_and_spread(values)
        rows.append([name, f"{mean:.2f} ± {spread:.2f}", f"{floating - mean:.2f}"])
    return markdown(["row", "accuracy, %", "drop"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--width", type=int, default=12, help="channels of the first layers")
    parser.add_argument("--baseline-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    disable_logging()
    found = measure(Data(), chosen)
    write(chosen.output, {"machine": machine(), "records": found})
    print("\n" + report(found))


if __name__ == "__main__":
    main()
