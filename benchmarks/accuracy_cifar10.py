# SPDX-License-Identifier: Apache-2.0
"""Accuracy of ResNet-20 on CIFAR-10 after INT8 training, beside floating point trained as long.

    python -m benchmarks.accuracy_cifar10 --data FOLDER [--seeds 3] [--output FILE.json]

The folder holds ``cifar10_jpeg/train.zip`` and ``test*.zip`` (32×32 JPEG files
``<class>/<number>.jpg``) and ``cifar10_resnet_weights/resnet20-*.th`` (``state_dict`` with keys
``module.*``, for RGB images of 0…1 with ImageNet's mean and deviation).

JPEG coding costs weights that were trained on the original images about ten points, so each
seed first fine-tunes in floating point on a fixed part of the training images: its baseline.
From there two networks go on with the same images, order and learning rates: one in floating
point, one after ``create_compressed_model`` in INT8. The last epoch counts, none is picked.
Needs Pillow.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import CifarResNet
from benchmarks.records import find, machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, register_default_init_args

MEANS = (0.485, 0.456, 0.406)
DEVIATIONS = (0.229, 0.224, 0.225)
BORDER = 4  # pixels by which a training image may be shifted
FIGURES = ("baseline", "continued", "initialised", "trained", "stripped")


@dataclass(frozen=True)
class Images:
    """Images, uint8 [n, 3, 32, 32], and their classes."""

    pixels: Tensor
    labels: Tensor


def read_images(archive: Path, count: int | None = None) -> Images:
    """Return all images of an archive, or a random part that is the same in every run."""
    from PIL import Image

    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[0] for name in names})
        if count is not None:
            order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
            names = [names[index] for index in sorted(order[:count].tolist())]
        pixels = [np.asarray(Image.open(io.BytesIO(files.read(name)))) for name in names]
    labels = torch.tensor([classes.index(name.split("/")[0]) for name in names])
    return Images(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), labels)


def normalised(pixels: Tensor) -> Tensor:
    means, deviations = (torch.tensor(v).view(3, 1, 1) for v in (MEANS, DEVIATIONS))
    return (pixels / 255 - means) / deviations


class TrainingBatches:
    """Shuffled batches of shifted and mirrored images; each pass continues the random stream."""

    def __init__(self, images: Images, batch_size: int, seed: int) -> None:
        self.images = images
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.images.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images.labels), generator=self.generator)
        for part in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self.augmented(normalised(self.images.pixels[part])), self.images.labels[part]

    def augmented(self, images: Tensor) -> Tensor:
        """Shift each image by up to ``BORDER`` pixels, and mirror every other one."""
        count, channels, side = len(images), torch.arange(3), images.shape[-1]
        padded = F.pad(images, [BORDER] * 4)
        shifts = torch.randint(0, 2 * BORDER + 1, (2, count), generator=self.generator)
        rows, columns = shifts[..., None] + torch.arange(side)
        mirrored = torch.rand(count, generator=self.generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        places = torch.arange(count)[:, None, None, None]
        return padded[
            places, channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
        ]


class Placed:
    """Batches on a device, with the length and the batch size of those that they come from."""

    def __init__(self, batches: TrainingBatches, device: str) -> None:
        self.batches, self.device = batches, device
        self.batch_size = batches.batch_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            yield images.to(self.device), labels.to(self.device)


def read_network(folder: Path, depth: int = 20) -> nn.Module:
    path = find(folder, f"resnet{depth}-*.th")
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = CifarResNet((depth - 2) // 6)
    model.load_state_dict({k.removeprefix("module."): v for k, v in state["state_dict"].items()})
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Return the share of images whose class the model, in evaluation mode, gets right, in %."""
    model.eval()
    device = next(model.parameters()).device
    pairs = zip(images.pixels.split(250), images.labels.split(250), strict=True)
    hits = sum(int((model(normalised(p).to(device)).argmax(1).cpu() == y).sum()) for p, y in pairs)
    return 100 * hits / len(images.labels)


def train(  # a plan of training
    model: nn.Module,
    batches: TrainingBatches | Placed,
    epochs: int,
    rate: float,
    controller: Any = None,
    *,
    task_weight: float = 1.0,
) -> None:
    """Train with SGD; the learning rate falls from ``rate`` to zero along a cosine.

    ``task_weight`` is that of the cross-entropy, beside the controller's own loss.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        model.train()
        if controller is not None:
            controller.scheduler.epoch_step()
        for images, labels in batches:
            if controller is not None:
                controller.scheduler.step()
            loss = task_weight * F.cross_entropy(model(images), labels)
            if controller is not None:
                loss = loss + controller.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"#   epoch {epoch}: loss {total / len(batches):.4f}, {seconds:.0f} s", flush=True)


def run(seed: int, data: tuple[Images, Images], arguments: argparse.Namespace) -> dict[str, float]:
    """Return the accuracies of one seed, in percent, by the names in ``FIGURES``."""
    torch.manual_seed(seed)
    training, test = data
    found: dict[str, float] = {"seed": seed}

    def note(name: str, model: nn.Module) -> None:
        found[name] = accuracy(model, test)
        print(f"# seed {seed} {name}: {found[name]:.2f}", flush=True)

    model = read_network(arguments.data / "cifar10_resnet_weights")
    batches = TrainingBatches(training, arguments.batch, seed)
    train(model, batches, arguments.baseline_epochs, arguments.baseline_rate)
    note("baseline", model)

    continued = copy.deepcopy(model)
    batches = TrainingBatches(training, arguments.batch, seed + 1000)
    train(continued, batches, arguments.epochs, arguments.rate)
    note("continued", continued)

    batches = TrainingBatches(training, arguments.batch, seed + 1000)
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 3, 32, 32]},
            "compression": {"algorithm": "quantization", **arguments.settings},
        }
    )
    register_default_init_args(config, batches)
    controller, model = create_compressed_model(model, config, dump_graphs=False)
    note("initialised", model)
    train(model, batches, arguments.epochs, arguments.rate, controller)
    note("trained", model)
    note("stripped", controller.strip())
    return found


def report(runs: list[dict[str, float]]) -> str:
    """Return one row per seed, and mean ± standard deviation of every column."""
    for found in runs:
        found["drop"] = found["baseline"] - found["trained"]
        found["drop_from_continued"] = found["continued"] - found["trained"]
    names = [*FIGURES, "drop", "drop_from_continued"]
    rows = [[str(int(found["seed"])), *(f"{found[n]:.2f}" for n in names)] for found in runs]
    summary = [mean_and_spread(found[name] for found in runs) for name in names]
    rows.append(["mean ± spread", *(f"{mean:.2f} ± {spread:.2f}" for mean, spread in summary)])
    header = ["seed", "FP32 baseline", "FP32 continued", "INT8 initialised", "INT8 trained",
              "stripped", "drop", "drop from continued"]  # fmt: skip
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the images and the weights")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="images to train on")
    parser.add_argument("--baseline-epochs", type=int, default=6)
    parser.add_argument("--baseline-rate", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=4, help="of INT8, and of FP32 beside it")
    parser.add_argument("--rate", type=float, default=0.003, help="learning rate of these epochs")
    parser.add_argument("--settings", type=json.loads, default={}, help="of quantization, as JSON")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.data is None:
        print("not measured: pass --data FOLDER, which holds the images and the weights")
        return
    torch.set_num_threads(arguments.threads)
    folder = arguments.data / "cifar10_jpeg"
    data = (
        read_images(find(folder, "train.zip"), arguments.images),
        read_images(find(folder, "test*.zip")),
    )
    choices = {name: str(value) for name, value in vars(arguments).items() if name != "data"}
    print(json.dumps(machine()))
    print(json.dumps(choices))
    print(f"{len(data[0].labels)} images to train on, {len(data[1].labels)} to evaluate on")
    runs = []
    for seed in range(arguments.seeds):
        runs.append(run(seed, data, arguments))
        text = report(runs)
        write(arguments.output, {"machine": machine(), "choices": choices, "runs": runs})
    print("\n" + text)


if __name__ == "__main__":
    main()
