# SPDX-License-Identifier: Apache-2.0
"""Cost of ``create_compressed_model`` without initialisation: in forward passes, and its growth.

    python -m benchmarks.creation [--repeat 7] [--operations 1000 2000 5000] [--threads 2]

ResNet-50 at 224×224: creation and a plain forward pass of the same network on the same input
take turns; the ratio of the medians is to stay under 3. Then networks of more and more
operations, each tiny, so that what is measured is our own work: the cost of one operation is to
stay the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import initialize, resnet50
from benchmarks.records import machine, markdown, write
from nncf import NNCFConfig, create_compressed_model
from nncf.torch.capture import capture

NO_INITIALISATION = {
    "range": {"num_init_samples": 0},
    "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
}


class Chain(nn.Module):
    """Blocks of five operations on 4×4 pixels: convolution, batch norm, ReLU, addition, ReLU."""

    OPERATIONS = 5

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(F.relu(norm(convolution(x))) + x)
        return x


def config(shape: tuple[int, ...]) -> NNCFConfig:
    return NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": list(shape)},
            "compression": {"algorithm": "quantization", "initializer": NO_INITIALISATION},
        }
    )


def seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


@torch.no_grad()
def compare(
    make: Callable[[], nn.Module], shape: tuple[int, ...], arguments: argparse.Namespace
) -> tuple[float, float, int]:
    """Return the median seconds of creation and of a forward, and the number of operations."""
    x, chosen = torch.randn(shape), config(shape)
    operations = len(capture(make(), lambda model: model(x), inputs=(x,)).graph)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    creations, forwards = [], []
    for turn in range(arguments.repeat + 1):  # the first turn warms up
        model = make().eval()
        model(x)
        forwards.append(seconds(partial(model, x), clock))
        create = partial(create_compressed_model, model, chosen, dump_graphs=False)
        creations.append(seconds(create, clock))
        if turn == 0:
            creations.clear()
            forwards.clear()
    return statistics.median(creations), statistics.median(forwards), operations


def growth(arguments: argparse.Namespace) -> Iterator[tuple[int, float, float]]:
    """Yield operations, seconds of creation, and seconds of a forward of ever longer chains."""
    for size in arguments.operations:
        make = partial(Chain, size // Chain.OPERATIONS)
        created, forward, found = compare(make, (1, 4, 4, 4), arguments)
        yield found, created, forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--operations", nargs="+", type=int, default=[500, 1000, 2000, 5000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true",
                        help="count processor time instead (busy machine; with --threads 1)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(machine()))

    def network() -> nn.Module:
        return initialize(resnet50())

    created, forward, operations = compare(network, (1, 3, 224, 224), arguments)
    print(f"\nresnet50, 224×224, {operations} operations: creation {created * 1e3:.0f} ms, forward")
    print(f"{forward * 1e3:.0f} ms, ratio {created / forward:.2f} (goal: at most 3)\n")
    found = list(growth(arguments))
    rows = [
        [count, f"{cost:.2f}", f"{cost / count * 1e3:.2f}", f"{passed * 1e3:.0f}"]
        for count, cost, passed in found
    ]
    print(markdown(["operations", "creation, s", "ms an operation", "forward, ms"], rows))
    results = {"resnet50": {"creation_s": created, "forward_s": forward}, "growth": found}
    write(arguments.output, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
