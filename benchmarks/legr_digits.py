# SPDX-License-Identifier: Apache-2.0
"""What the learned ranking of filters is worth: uniform, global and learned at the same FLOPs.

    python -m benchmarks.legr_digits [--seeds 3] [--flops 0.9] [--generations 200]

A small convolutional network learns the 8×8 digits of scikit-learn, is pruned at once to a share
of FLOPs in each of three ways, and is trained on for a few epochs. The learned ranking judges by
a part of the training data; accuracies are of data that neither training nor search has seen.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import conv_norm
from benchmarks.records import machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, register_default_init_args

RANKINGS = {
    "uniform": {"all_weights": False},
    "global": {"all_weights": True},
    "learned": {"interlayer_ranking_type": "learned_ranking"},
}


class Network(nn.Module):
    """Five convolutions of different widths, one pair of them around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(1, 32), nn.ReLU())
        self.inner = nn.Sequential(*conv_norm(32, 64), nn.ReLU())
        self.outer = nn.Sequential(*conv_norm(64, 32))
        self.down = nn.Sequential(*conv_norm(32, 48, stride=2), nn.ReLU())
        self.last = nn.Sequential(*conv_norm(48, 96), nn.ReLU())
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.outer(self.inner(x)))
        return self.head(self.last(self.down(x)).mean((2, 3)))  # type: ignore[no-any-return]  # a module's call is Any


class Batches:
    """Shuffled batches of images and labels; the order comes from the global generator."""

    def __init__(self, images: Tensor, labels: Tensor, size: int = 64) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self.labels)).split(self.size):
            yield self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Digits:
    """Three parts: to train with, to judge candidates with, to report."""

    train: Batches
    judge: Batches
    test: Batches


def digits(seed: int) -> Digits:
    """Return the digits in random thirds."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(found.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(found.target)[order]
    parts = [Batches(i, y) for i, y in zip(images.split(600), labels.split(600), strict=True)]
    return Digits(*parts)


def train_steps(loader: Any, model: nn.Module, optimizer: Any, controller: Any, steps: int) -> None:
    """Train for so many steps, as the learned ranking asks for."""
    model.train()
    while steps > 0:
        for images, labels in loader:
            optimizer.zero_grad()
            (F.cross_entropy(model(images), labels) + controller.loss()).backward()
            optimizer.step()
            steps -= 1
            if steps == 0:
                return


def fit(model: nn.Module, data: Batches, epochs: int, rate: float, controller: Any = None) -> None:
    """Train with a rate that falls along a cosine."""
    optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        if controller is not None:
            controller.scheduler.epoch_step()
        model.train()
        for images, labels in data:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def validate(model: nn.Module, data: Any) -> tuple[float, float]:
    """Return accuracy in percent and loss."""
    model.eval()
    outputs = model(data.images)
    accuracy = (outputs.argmax(1) == data.labels).float().mean() * 100
    return float(accuracy), float(F.cross_entropy(outputs, data.labels))


def pruned(model: nn.Module, data: Digits, ranking: str, arguments: argparse.Namespace) -> Any:
    """Return ``(accuracy, loss, FLOPs level, kept filters, seconds of creation)``."""
    params = {
        "schedule": "baseline",
        "pruning_flops_target": arguments.flops,
        "prune_first_conv": True,
        "prune_downsample_convs": True,
        "channel_multiple": arguments.multiple,
        **RANKINGS[ranking],
    }
    if ranking == "learned":
        search = {"generations": arguments.generations, "train_steps": arguments.train_steps}
        params["legr_params"] = search
    text = {
        "input_info": {"sample_size": [2, 1, 8, 8]},
        "compression": {"algorithm": "filter_pruning", "params": params},
    }
    config = register_default_init_args(
        NNCFConfig.from_dict(text),
        data.train,
        train_steps_fn=train_steps,
        validate_fn=validate,
        val_loader=data.judge,
    )
    start = time.perf_counter()
    controller, model = create_compressed_model(model, config, dump_graphs=False)
    seconds = time.perf_counter() - start
    fit(model, data.train, arguments.epochs, 0.02, controller)
    found = controller.statistics().filter_pruning.model_statistics
    kept = {
        layer.name.split("/")[1]: round(layer.mask_shape[0] * (1 - layer.filter_pruning_level))
        for layer in found.pruned_layers_summary
    }
    accuracy, loss = validate(controller.strip(), data.test)
    return {
        "accuracy": accuracy,
        "loss": loss,
        "flops_level": found.flops_pruning_level,
        "kept": list(kept.values()),
        "creation_s": seconds,
    }


def run(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)
    data = digits(seed)
    model = Network()
    fit(model, data.train, arguments.baseline_epochs, 0.05)
    accuracy, loss = validate(model, data.test)
    found: dict[str, Any] = {"seed": seed, "baseline": {"accuracy": accuracy, "loss": loss}}
    for ranking in RANKINGS:
        torch.manual_seed(seed)
        found[ranking] = pruned(copy.deepcopy(model), data, ranking, arguments)
    print(json.dumps(found), flush=True)
    return found


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flops", type=float, default=0.9, help="share of FLOPs that goes")
    parser.add_argument("--multiple", type=int, default=2, help="of channels in each layer")
    parser.add_argument("--baseline-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10, help="after pruning")
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--train-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    print(json.dumps(machine()))
    runs = [run(seed, arguments) for seed in range(arguments.seeds)]
    rows = []
    for name in ("baseline", *RANKINGS):
        accuracy, spread = mean_and_spread(one[name]["accuracy"] for one in runs)
        loss, _ = mean_and_spread(one[name]["loss"] for one in runs)
        level, _ = mean_and_spread(one[name].get("flops_level", 0.0) for one in runs)
        rows.append([name, f"{accuracy:.2f} ± {spread:.2f}", f"{loss:.4f}", f"{level:.3f}"])
    print("\n" + markdown(["ranking", "accuracy, %", "loss", "FLOPs gone"], rows))
    write(arguments.output, {"machine": machine(), "runs": runs})


if __name__ == "__main__":
    main()
