# SPDX-License-Identifier: Apache-2.0
"""Mixed precision of ResNet-20 by Hessian traces: how long it takes, and what it chooses.

    python -m benchmarks.hawq --data FOLDER [--uniform 5] [--train 6 --seeds 0 1 2]

The folder is that of ``benchmarks.accuracy_cifar10``. The network is fine-tuned in floating point
for a moment, since its weights come from uncoded images. Then bit widths of weights are searched at
the size of uniform 5 (or other) bits, activations having 8: once with the integer programme and
once greedily, from the same traces and rounding errors. Accuracy is that of the quantized network
before any training, and with ``--train 6`` after so many epochs, with the same images and learning rates
for every plan. A seed has a baseline, traces and plans of its own. Needs Pillow.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.accuracy_cifar10 import (
    Images,
    TrainingBatches,
    accuracy,
    read_images,
    read_network,
    train,
)
from benchmarks.records import find, machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.algorithms.mixed_precision import hawq
from nncf.algorithms.mixed_precision.budget import Budget
from nncf.algorithms.mixed_precision.programme import solve
from nncf.algorithms.mixed_precision.space import Space
from tests.algorithms.mixed_precision.solvers import greedy, total

EVERY = (2, 3, 4, 5, 6, 7, 8)
CHOICES = ((4, 8), (2, 4, 8), EVERY)


class Watched:
    """Stands for ``hawq.weigh`` and keeps what went in and came out."""

    def __init__(self) -> None:
        self.space = Space({})
        self.found: Any = None
        self.weigh = hawq.weigh

    def __call__(self, space: Space, *rest: Any) -> Any:
        self.space, self.found = space, self.weigh(space, *rest)
        return self.found


def compressed(
    model: nn.Module, batches: TrainingBatches, precision: dict[str, Any]
) -> tuple[Any, nn.Module]:
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 3, 32, 32]},
            "target_device": "TRIAL",
            "compression": {
                "algorithm": "quantization",
                "weights": {"per_channel": True},
                "activations": {"bits": 8},
                "initializer": {"precision": precision},
            },
        }
    )
    register_default_init_args(config, batches, criterion=nn.CrossEntropyLoss())
    pair: tuple[Any, nn.Module] = create_compressed_model(
        copy.deepcopy(model), config, dump_graphs=False
    )
    return pair


def limited(space: Space, widths: tuple[int, ...]) -> Space:
    """Return the space with only these widths for weights."""
    quantizers = {
        name: dataclasses.replace(q, widths=widths) if q.weight else q
        for name, q in space.quantizers.items()
    }
    return Space(quantizers, space.products)


def plans(
    space: Space, costs: Any, budget: Budget, uniform: int
) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the plans that are compared, with their names."""
    yield f"uniform {uniform} bits", dict.fromkeys(space.weights, uniform)
    for widths in (choice for choice in CHOICES if min(choice) < uniform):
        choice, text = limited(space, widths), "/".join(map(str, widths))
        table = {name: {b: row[b] for b in widths} for name, row in costs.items()}
        by_greed = greedy(choice, table, budget)
        assert by_greed is not None  # its least width is below the uniform one
        yield f"{text}, greedy", by_greed
        yield f"{text}, integer programme", solve(choice, table, budget)


def measure(seed: int, images: Images, test: Images, options: argparse.Namespace) -> dict[str, Any]:
    """Return the time of the search and all plans with their accuracies, of one seed."""
    torch.manual_seed(seed)
    model = read_network(options.data / "cifar10_resnet_weights")
    train(model, TrainingBatches(images, 128, seed), options.epochs, 0.01)
    model.eval()
    batches = TrainingBatches(images, 32, seed)
    values = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    size = values * options.uniform / 8
    precision = {"type": "hawq", "bits": EVERY, "budget": {"type": "bytes", "value": size}}
    watched = Watched()
    start = time.perf_counter()
    with mock.patch.object(hawq, "weigh", watched):
        compressed(model, batches, precision)
    seconds = time.perf_counter() - start
    space, costs, rows = watched.space, watched.found.costs, []
    for name, widths in plans(space, costs, Budget("bytes", 8 * size), options.uniform):
        chosen = {n: widths[n] for n in space.weights}
        entries = [[bits, scope] for scope, bits in chosen.items()]
        manual = {"type": "manual", "bitwidth_per_scope": entries}
        controller, quantized = compressed(model, batches, manual)
        row = {
            "plan": name,
            "bytes": sum(q.values * chosen[n] for n, q in space.weights.items()) / 8,
            "objective": total(costs, chosen),
            "accuracy": accuracy(quantized, test),
            "widths": chosen,
        }
        if options.train and "greedy" not in name:
            shuffled = TrainingBatches(images, 128, seed + 1)
            train(quantized, shuffled, options.train, options.rate, controller)
            row["trained"] = accuracy(quantized, test)
        print(f"# seed {seed} {row}", flush=True)
        rows.append(row)
    return {
        "seed": seed,
        "baseline": accuracy(model, test),
        "seconds": seconds,
        "traces": dict(watched.found.traces),
        "rows": rows,
    }


def report(results: list[dict[str, Any]]) -> str:
    """Return one line per plan: means over the seeds with their spread, widths of the first seed."""
    lines = []
    for rows in zip(*(result["rows"] for result in results), strict=True):
        accuracies = [
            "{:.2f} ± {:.2f} %".format(*mean_and_spread(row[name] for row in rows))
            if name in rows[0]
            else ""
            for name in ("accuracy", "trained")
        ]
        size, objective = (
            mean_and_spread(row[name] for row in rows)[0] for name in ("bytes", "objective")
        )
        widths = sorted(Counter(rows[0]["widths"].values()).items())
        listed = ", ".join(f"{bits}: {count}" for bits, count in widths)
        lines.append([rows[0]["plan"], f"{size:,.0f}", f"{objective:.4g}", *accuracies, listed])
    header = ["plan", "bytes", "objective", "before training", "trained", "weights by bits"]
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the images and the weights")
    parser.add_argument("--uniform", type=int, default=5, help="bits whose size is the budget")
    parser.add_argument("--train", type=int, default=0, help="epochs of training each plan")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of these epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning in floating point")
    parser.add_argument("--images", type=int, default=10_000, help="for fine-tuning")
    parser.add_argument("--test-images", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    options = parser.parse_args()
    if options.data is None:
        print("not measured: pass --data FOLDER, which holds the images and the weights")
        return
    torch.set_num_threads(options.threads)
    images = read_images(find(options.data / "cifar10_jpeg", "train.zip"), options.images)
    test = read_images(find(options.data / "cifar10_jpeg", "test*.zip"), options.test_images)
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        results.append(measure(seed, images, test, options))
        write(options.output, {"machine": machine(), "results": results})
    for name, form in (
        ("baseline", "floating point: {:.2f} ± {:.2f} %"),
        ("seconds", "search: {:.0f} ± {:.0f} s"),
    ):
        print(form.format(*mean_and_spread(result[name] for result in results)))
    print(report(results))


if __name__ == "__main__":
    main()
