# SPDX-License-Identifier: Apache-2.0
"""LeNet-5 on MNIST with a twelfth and a hundredth of its weights.

    python -m benchmarks.compression_mnist --data FOLDER [--seeds 0 1 2] [--output FILE.json]

The folder holds ``mnist.npz`` with ``x``, uint8 [63000, 28, 28], and ``y``; the last 3,000 images
are the test set. The network is Caffe's LeNet-5 (20 and 50 filters of 5×5, 500 hidden units,
431,080 parameters). Each seed trains a baseline; from it start magnitude sparsity at 11/12 and
at 99/100 of all weights and, as a measure of what training on alone does, the same training
without compression. The last epoch counts, none is picked.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.records import find, machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model

TEST_IMAGES = 3000
ROWS = {"continued": None, "12 × fewer": 1 - 1 / 12, "100 × fewer": 1 - 1 / 100}


class LeNet5(nn.Sequential):
    """Caffe's LeNet-5 for 28×28 images."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
        )


class Batches:
    """Shuffled batches; each pass continues the random stream."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int, seed: int) -> None:
        self.images, self.labels, self.batch = images, labels, batch
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.labels) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels), generator=self.generator)
        for part in order[: len(self) * self.batch].split(self.batch):
            yield self.images[part], self.labels[part]


def train(model: nn.Module, batches: Batches, epochs: int, rate: float, controller: Any) -> None:
    """Train with SGD; the learning rate falls from ``rate`` to zero along a cosine."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    model.train()
    for _ in range(epochs):
        if controller is not None:
            controller.scheduler.epoch_step()
        for images, labels in batches:
            if controller is not None:
                controller.scheduler.step()
            loss = F.cross_entropy(model(images), labels)
            if controller is not None:
                loss = loss + controller.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class the model gets right, in percent."""
    hits = model.eval()(images).argmax(1) == labels
    return 100 * float(hits.float().mean())


def run_row(
    level: float | None, model: nn.Module, batches: Batches, arguments: argparse.Namespace
) -> tuple[nn.Module, float]:
    """Return the trained and stripped network and the share of its weights that is zero."""
    model, controller = copy.deepcopy(model), None
    if level is not None:
        params = {
            "schedule": "polynomial",
            "power": 3,
            "update_per_optimizer_step": True,
            "sparsity_target": level,
            "sparsity_target_epoch": arguments.epochs // 2,
            "sparsity_freeze_epoch": arguments.epochs // 2 + 1,
            "steps_per_epoch": len(batches),
        }
        section = {"algorithm": "magnitude_sparsity", "params": params}
        config = NNCFConfig.from_dict(
            {"input_info": {"sample_size": [1, 1, 28, 28]}, "compression": section}
        )
        controller, model = create_compressed_model(model, config, dump_graphs=False)
    train(model, batches, arguments.epochs, arguments.rate, controller)
    if controller is None:
        return model, 0.0
    model = controller.strip()
    weights = [p for p in model.parameters() if p.dim() > 1]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    return model, zeros


def run(seed: int, data: tuple[Tensor, Tensor], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the accuracies of one seed, in percent."""
    torch.manual_seed(seed)
    images, labels = data
    training = (images[:-TEST_IMAGES], labels[:-TEST_IMAGES])
    test = (images[-TEST_IMAGES:], labels[-TEST_IMAGES:])
    model = LeNet5()
    train(model, Batches(*training, arguments.batch, seed), arguments.baseline_epochs, 0.05, None)
    found: dict[str, Any] = {"seed": seed, "baseline": accuracy(model, *test)}
    for name, level in ROWS.items():
        batches = Batches(*training, arguments.batch, seed + 1000)
        compressed, zeros = run_row(level, model, batches, arguments)
        found[name] = accuracy(compressed, *test)
        found[f"{name}: zeros"] = zeros
        print(f"# seed {seed} {name}: {found[name]:.2f}, zeros {zeros:.4f}", flush=True)
    return found


def report(runs: list[dict[str, Any]]) -> str:
    """Return one line per row: accuracy and drop from the baseline, mean and spread."""
    rows = []
    for name in ("baseline", *ROWS):
        mean, spread = mean_and_spread(found[name] for found in runs)
        drop, drop_spread = mean_and_spread(found["baseline"] - found[name] for found in runs)
        zeros = runs[0].get(f"{name}: zeros", 0.0)
        rows.append(
            [name, f"{zeros:.2%}", f"{mean:.2f} ± {spread:.2f}", f"{drop:.2f} ± {drop_spread:.2f}"]
        )
    return markdown(["row", "zero weights", "accuracy, %", "drop, points"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with mnist.npz")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--baseline-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=12, help="of every row")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate of these epochs")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.data is None:
        print("not measured: pass --data FOLDER, which holds mnist.npz")
        return
    torch.set_num_threads(arguments.threads)
    with np.load(find(arguments.data, "mnist.npz")) as file:
        images = torch.from_numpy(file["x"]).float().div(255).unsqueeze(1)
        labels = torch.from_numpy(file["y"]).long()
    choices = {name: str(value) for name, value in vars(arguments).items() if name != "data"}
    print(json.dumps(machine()))
    print(json.dumps(choices))
    runs = []
    for seed in arguments.seeds:
        runs.append(run(seed, (images, labels), arguments))
        write(arguments.output, {"machine": machine(), "choices": choices, "runs": runs})
    print("\n" + report(runs))


if __name__ == "__main__":
    main()
