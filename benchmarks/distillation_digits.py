# SPDX-License-Identifier: Apache-2.0
"""When distillation harms few bits: scikit-learn's digits, 3-bit weights, by learning rate.

    python -m benchmarks.distillation_digits [--seeds 3] [--output FILE.json]

A wide network teaches a narrow one with 3-bit weights, after both have been trained in floating
point on 700 images. In every row all variants train with the same images and order. "0.3 + 0.7"
weighs the task's loss with 0.3 and distillation with 0.7, "1 + 1" adds both in full.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.records import machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, disable_logging, register_default_init_args

TRAINING = 700
BATCH = 50
NO_LIMIT = 1e6
VARIANTS: dict[str, dict[str, float] | None] = {
    "none": None,
    "T=1": {"temperature": 1},
    "T=5": {"temperature": 5},
    "T=5, no limit": {"temperature": 5, "gradient_limit": NO_LIMIT},
}
WEIGHTS = {"0.3 + 0.7": (0.3, 0.7), "1 + 1": (1.0, 1.0)}


def network(width: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, width), *block(width, width), nn.MaxPool2d(2)]
    layers += [*block(width, 2 * width), *block(2 * width, 2 * width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


class Data:
    """The digits: shuffled training batches, and the accuracy on the rest."""

    def __init__(self) -> None:
        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
        self.images = torch.tensor(digits.images, dtype=torch.float32)[order][:, None] / 16
        self.labels = torch.tensor(digits.target)[order]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        scores = model.eval()(self.images[TRAINING:])
        return 100 * float((scores.argmax(1) == self.labels[TRAINING:]).float().mean())


class Batches:
    """Shuffled batches; each pass continues the random stream."""

    batch_size = BATCH

    def __init__(self, data: Data, seed: int) -> None:
        self.data = data
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return TRAINING // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in torch.randperm(TRAINING, generator=self.generator).split(BATCH):
            yield self.data.images[part], self.data.labels[part]


def train(
    model: nn.Module,
    batches: Batches,
    plan: tuple[int, float],
    controller: Any = None,
    share: float = 1.0,
) -> None:
    """Train for ``(epochs, rate)``; the task's loss weighs ``share``."""
    epochs, rate = plan
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        model.train()
        for images, labels in batches:
            loss = share * F.cross_entropy(model(images), labels)
            if controller is not None:
                loss = loss + controller.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def compressed(
    models: tuple[nn.Module, nn.Module], batches: Batches, sections: list[dict[str, Any]]
) -> tuple[Any, nn.Module]:
    teacher, student = models
    config = NNCFConfig.from_dict({"target_device": "TRIAL", "compression": sections})
    register_default_init_args(config, batches, teacher=teacher)
    return create_compressed_model(copy.deepcopy(student), config, dump_graphs=False)


def measure(data: Data, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a record per row: bits, rate, weights of the losses, accuracies by variant."""
    pairs = []
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        models = network(24), network(6)
        for model in models:
            train(model, Batches(data, seed), (12, 0.05))
        pairs.append(models)
        print(f"# seed {seed}: " + ", ".join(f"{data.accuracy(m):.2f}" for m in models), flush=True)
    records = []
    for activations in arguments.activations:
        bits = {"weights": {"bits": 3}, "activations": {"bits": activations}}
        for rate in arguments.rates:
            for name, (task, scale) in WEIGHTS.items():
                record = {"bits": f"w3a{activations}", "rate": rate, "losses": name}
                for variant, settings in VARIANTS.items():
                    found = []
                    for seed, models in enumerate(pairs):
                        torch.manual_seed(seed)
                        batches = Batches(data, seed + 100)
                        taught = {"algorithm": "knowledge_distillation", "type": "softmax"}
                        sections = [{"algorithm": "quantization", **bits}]
                        if settings is not None:
                            sections.insert(0, {**taught, "scale": scale, **settings})
                        controller, model = compressed(models, batches, sections)
                        share = 1.0 if settings is None else task
                        train(model, batches, (arguments.epochs, rate), controller, share)
                        found.append(data.accuracy(model))
                    record[variant] = found
                records.append(record)
                print("# " + " | ".join(row(record)), flush=True)
    return records


def row(record: dict[str, Any]) -> list[str]:
    spreads = [mean_and_spread(record[variant]) for variant in VARIANTS]
    return [record["bits"], f"{record['rate']:g}", record["losses"],
            *(f"{mean:.1f} ± {spread:.1f}" for mean, spread in spreads)]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.1, 0.4])
    parser.add_argument("--activations", type=int, nargs="+", default=[8, 3], help="their bits")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    disable_logging()
    records = measure(Data(), chosen)
    write(chosen.output, {"machine": machine(), "records": records})
    header = ["bits", "learning rate", "weights of the losses", *VARIANTS]
    print("\n" + markdown(header, [row(record) for record in records]))


if __name__ == "__main__":
    main()
