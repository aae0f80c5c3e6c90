# SPDX-License-Identifier: Apache-2.0
"""Time of a training step under the sparsity algorithms, against floating point.

    python -m benchmarks.sparsity_step [--batch 64] [--steps 15] [--threads 2] [--processor-time]
        [--output FILE]

ResNet-18 for images of 32×32, SGD with momentum. The variants take turns step by step, so that a
busy minute of the machine hits all alike; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.networks import initialize, resnet18
from benchmarks.records import machine, markdown, write

BASE = "floating point"
WARMING = 2  # steps that are not counted
VARIANTS = (BASE, "magnitude_sparsity", "rb_sparsity")


def stepper(variant: str, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Return a function that makes one training step of a fresh network."""
    model = initialize(resnet18(10, small_input=True)).train()
    controller = None
    if variant != BASE:
        from nncf import create_compressed_model

        text = {
            "input_info": {"sample_size": [1, 3, 32, 32]},
            "compression": {"algorithm": variant, "sparsity_init": 0.5},
        }
        controller, model = create_compressed_model(model, text, dump_graphs=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        loss = nn.functional.cross_entropy(model(images), labels)
        if controller is not None:
            controller.scheduler.step()
            loss = loss + controller.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true",
                        help="count processor time instead (busy machine; with --threads 1)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, 32, 32)
    labels = torch.randint(0, 10, (arguments.batch,))
    steppers = {variant: stepper(variant, images, labels) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    clock = time.process_time if arguments.processor_time else time.perf_counter
    for _ in range(arguments.steps + WARMING):
        for variant, step in steppers.items():
            start = clock()
            step()
            times[variant].append(clock() - start)
            time.sleep(0.02)  # threads that still spin would slow down whoever is next
    medians = {name: statistics.median(found[WARMING:]) for name, found in times.items()}
    print(json.dumps(machine()))
    print(f"ResNet-18, batch {arguments.batch}, 32×32, medians of {arguments.steps} steps\n")
    rows = [[n, f"{m * 1e3:.0f}", f"{m / medians[BASE]:.2f}"] for n, m in medians.items()]
    print(markdown(["", "step, ms", "× FP32"], rows))
    write(arguments.output, {"machine": machine(), "seconds": times})


if __name__ == "__main__":
    main()
