# SPDX-License-Identifier: Apache-2.0
"""Training steps on request: one variant of a network in a process of its own.

    python -m benchmarks.step_server nncf --network resnet18 --batch 64 --threads 2

``benchmarks.training_step`` starts one such process for each variant, and modules of
``benchmarks.peers`` make themselves one by calling ``serve``. Lines are read from standard
input: each ``step`` is answered with a JSON line of its seconds and loss, ``finish`` with the
peak of the resident memory and with what was found to be quantized. Everything else that the
process or its libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.networks import initialize, mobilenet_v2, resnet18

Prepare = Callable[[nn.Module, Tensor], nn.Module]
"""Make the variant of a floating-point network in training mode; the batch serves calibration."""

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": partial(resnet18, 10, small_input=True),
    "mobilenet_v2": partial(mobilenet_v2, 10, small_input=True),
}
LEVELS = 256  # what eight bits can tell apart
LARGEST_FILTER = 3  # pixels a side, in the networks above
TOLERANCE = 5e-3  # of a step; what float32 leaves of a grid is ten times closer


class Coverage(TorchDispatchMode):
    """Counts, while it is entered, which operands are on a grid of 256 levels: those quantized.

    It looks at the tensors that the operators of PyTorch really receive, so it judges every
    tool alike, whatever the tool says of itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.on_grid: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for role, operand, axis in operands(func.overloadpacket, args):
            self.seen[role] += 1
            self.on_grid[role] += on_grid(operand, axis)
        return func(*args, **(kwargs or {}))

    def summary(self) -> dict[str, str]:
        return {role: f"{self.on_grid[role]}/{self.seen[role]}" for role in self.seen}


def operands(function: Any, args: tuple[Any, ...]) -> Iterator[tuple[str, Tensor, int]]:
    """Yield the operands that a quantizer may stand before: role, tensor, axis of its channels."""
    aten = torch.ops.aten
    if function is aten.convolution:
        yield from (("inputs", args[0], 1), ("weights", args[1], 0))
    elif function is aten.addmm:
        yield from (("inputs", args[1], 1), ("weights", args[2].t(), 0))
    elif function in (aten.mm, aten.linear):
        yield from (("inputs", args[0], 1), ("weights", args[1], 0))
    elif function in (aten.add, aten.add_) and is_sum_of_maps(args):
        yield from (("summands", args[0], 1), ("summands", args[1], 1))


def is_sum_of_maps(args: tuple[Any, ...]) -> bool:
    """Return whether two feature maps are added; what has the sides of a filter is none."""
    shapes = [arg.shape for arg in args[:2] if isinstance(arg, Tensor)]
    if len(shapes) < 2 or shapes[0] != shapes[1]:
        return False
    return len(shapes[0]) == 4 and shapes[0][-1] > LARGEST_FILTER


@torch.no_grad()
def on_grid(tensor: Tensor, channel_axis: int) -> bool:
    """Return whether the tensor as a whole, or else each of its channels, is on a grid."""
    channels = tensor.transpose(0, channel_axis).flatten(1)
    rows = torch.stack([spread(channel, 256) for channel in spread(channels, 64)])
    return bool(grids(spread(tensor.flatten(), 4096)[None]).all() or grids(rows).all())


def spread(values: Tensor, count: int) -> Tensor:
    """Return up to ``count`` elements of the first axis, from all over it."""
    return values[:: max(1, len(values) // count)][:count]


def grids(rows: Tensor) -> Tensor:
    """Return for each row whether some division of its span into at most 255 steps hits all."""
    low = rows.amin(1, keepdim=True)
    span = (rows.amax(1, keepdim=True) - low).clamp(min=torch.finfo(rows.dtype).tiny)
    found = torch.zeros(len(rows), dtype=torch.bool)
    for steps in range(1, LEVELS):
        position = (rows - low) / span * steps
        found |= (position - position.round()).abs().amax(1) < TOLERANCE
    return found


def serve(prepare: Prepare) -> None:
    """Answer requests on standard input until ``finish``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--processor-time", action="store_true")
    arguments, _ = parser.parse_known_args()
    answers = private_output()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    inputs = torch.randn(arguments.batch, 3, 32, 32)
    labels = torch.randint(0, 10, (arguments.batch,))
    start = time.perf_counter()
    model = prepare(initialize(NETWORKS[arguments.network]()).train(), inputs)
    answer(answers, prepared=time.perf_counter() - start)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    for request in sys.stdin:
        if request.strip() == "finish":
            finish(answers, model, inputs)
            break
        start = clock()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        answer(answers, seconds=clock() - start, loss=loss.item())


def finish(answers: TextIO, model: nn.Module, inputs: Tensor) -> None:
    """Tell the peak memory, and then what is quantized in one more forward pass."""
    peak = peak_memory()
    with Coverage() as coverage, torch.no_grad():
        model(inputs)
    answer(answers, peak=peak, coverage=coverage.summary())


def private_output() -> TextIO:
    """Return standard output as a channel of our own; who prints now prints to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def answer(channel: TextIO, **values: Any) -> None:
    channel.write(json.dumps(values) + "\n")
    channel.flush()


def peak_memory() -> float:
    """Return the peak of the resident memory in MiB.

    Where Linux tells the peak of this program's own memory it is taken: the other figure may
    carry over from the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="ignore").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def floating_point(model: nn.Module, _batch: Tensor) -> nn.Module:
    """The network as it is."""
    return model


def compressed(model: nn.Module, batch: Tensor) -> nn.Module:
    """The network as ``create_compressed_model`` quantizes it by default."""
    from nncf import NNCFConfig, create_compressed_model, register_default_init_args

    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, *batch.shape[1:]]},
            "compression": {"algorithm": "quantization"},
        }
    )
    targets = torch.zeros(len(batch), dtype=torch.long)
    register_default_init_args(config, [(batch[:8], targets[:8])])
    return create_compressed_model(model, config, dump_graphs=False)[1].train()


VARIANTS: dict[str, Prepare] = {"floating_point": floating_point, "nncf": compressed}


if __name__ == "__main__":
    serve(VARIANTS[sys.argv[1]])
