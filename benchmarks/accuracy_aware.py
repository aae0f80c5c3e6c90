# SPDX-License-Identifier: Apache-2.0
"""The adaptive loop against trying every level: how much is pruned, after how many epochs.

    python -m benchmarks.accuracy_aware                 # digits: a minute
    python -m benchmarks.accuracy_aware --data FOLDER   # CIFAR-10: half an hour

A narrow ResNet-18 is trained in floating point. A sweep then prunes a copy of it to each level
(``--levels``), each for ``--epochs`` epochs, and keeps the highest level whose last epoch loses no
more than ``--drop`` points. The adaptive loop has the same goal, data, optimizer and network; its
epochs are counted too. Both prune filters ranked globally and quantize to 8 bits. The folder is
that of ``benchmarks.accuracy_cifar10``. Needs scikit-learn, or with ``--data`` Pillow.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy_cifar10 import Images, TrainingBatches, accuracy, read_images, train
from benchmarks.networks import BasicBlock, conv_norm
from benchmarks.records import find, machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.training import create_accuracy_aware_training_loop


class NarrowResNet18(nn.Sequential):
    """Four stages of two blocks for small images, from ``width`` channels on."""

    def __init__(self, width: int) -> None:
        layers = [*conv_norm(3, width), nn.ReLU()]
        inputs = width
        for stage in range(4):
            outputs, stride = width * 2**stage, 1 if stage == 0 else 2
            shortcut = None
            if stride != 1 or inputs != outputs:
                shortcut = nn.Sequential(*conv_norm(inputs, outputs, kernel=1, stride=stride))
            layers += [BasicBlock(inputs, outputs, stride, shortcut)]
            layers += [BasicBlock(outputs, outputs, 1, None)]
            inputs = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def digits() -> tuple[Images, Images]:
    """Return scikit-learn's digits as 16×16 images: 1,297 to train on, 500 to evaluate on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32)[:, None] * (255 / 16)
    pixels = F.interpolate(pixels, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1)
    whole, labels = pixels.round().to(torch.uint8), torch.tensor(data.target)
    return Images(whole[:-500], labels[:-500]), Images(whole[-500:], labels[-500:])


class AsTheyAre(TrainingBatches):
    """Batches of images that are not shifted or mirrored, as digits must not be."""

    def augmented(self, images: Tensor) -> Tensor:
        return images


class Trials:
    """One trained network, and the ways of compressing copies of it."""

    def __init__(self, data: tuple[Images, Images], seed: int, options: argparse.Namespace) -> None:
        self.training, self.test = data
        self.seed = seed
        self.options = options
        torch.manual_seed(seed)
        self.dense = NarrowResNet18(options.width)
        train(self.dense, self.batches(seed), options.baseline_epochs, 0.1)
        self.accuracy = accuracy(self.dense, self.test)

    def batches(self, order: int) -> TrainingBatches:
        kind = AsTheyAre if self.options.data is None else TrainingBatches
        return kind(self.training, 64, order)

    def compressed(self, level: float) -> tuple[NNCFConfig, Any, nn.Module, Any]:
        """Return configuration, controller, network and batches; the schedule prunes at once."""
        sample = [1, *self.training.pixels.shape[1:]]
        pruning = {
            "algorithm": "filter_pruning",
            "params": {
                "schedule": "baseline",
                "pruning_target": level,
                "all_weights": True,
                "channel_multiple": 1,
                "prune_first_conv": True,
                "prune_downsample_convs": True,
            },
        }
        loop = {
            "mode": "adaptive_compression_level",
            "params": {
                "maximal_absolute_accuracy_degradation": self.options.drop,
                "initial_training_phase_epochs": self.options.epochs,
                "patience_epochs": self.options.epochs,
                "minimal_compression_rate_step": 0.02,
                "maximal_total_epochs": self.options.budget,
            },
        }
        config = NNCFConfig.from_dict(
            {
                "input_info": {"sample_size": sample},
                "compression": [pruning, {"algorithm": "quantization"}],
                "accuracy_aware_training": loop,
            }
        )
        batches = self.batches(self.seed + 1000)
        register_default_init_args(config, batches)
        model = copy.deepcopy(self.dense)
        controller, model = create_compressed_model(model, config, dump_graphs=False)
        return config, controller, model, batches

    def optimizers(self, model: nn.Module) -> Callable[[], tuple[Any, None]]:
        return lambda: (torch.optim.SGD(model.parameters(), self.options.rate, momentum=0.9), None)

    def sweep(self) -> dict[str, Any]:
        """Return the metric of each level after the same number of epochs."""
        found: dict[str, float] = {}
        for level in self.options.levels:
            _, controller, model, batches = self.compressed(level)
            optimizer, _ = self.optimizers(model)()
            for _ in range(self.options.epochs):
                controller.scheduler.epoch_step()
                train_epoch(controller, model, optimizer, batches)
            found[f"{level:.2f}"] = accuracy(model, self.test)
            print(f"#   level {level:.2f}: {found[f'{level:.2f}']:.2f}", flush=True)
        least = self.accuracy - self.options.drop
        good = [float(level) for level, metric in found.items() if metric >= least]
        epochs = len(found) * self.options.epochs
        return {"level": max(good, default=0.0), "epochs": epochs, "metrics": found}

    def adaptive(self) -> dict[str, Any]:
        """Return what the adaptive loop comes to; the folder of its run is not kept."""
        config, controller, model, batches = self.compressed(self.options.start)

        def train_fn(compression_ctrl: Any, model: nn.Module, optimizer: Any) -> None:
            train_epoch(compression_ctrl, model, optimizer, batches)

        loop = create_accuracy_aware_training_loop(config, controller, self.accuracy)
        with tempfile.TemporaryDirectory() as folder:
            loop.run(
                model,
                train_epoch_fn=train_fn,
                validate_fn=lambda model: accuracy(model, self.test),
                configure_optimizers_fn=self.optimizers(model),
                log_dir=folder,
            )
        statistics = loop.statistics
        return {
            "level": statistics.compression_rate if statistics.met else 0.0,
            "epochs": statistics.attempts[-1].epoch,
            "metric": statistics.compressed_accuracy,
            "met": statistics.met,
            "ended": statistics.finished,
        }


def train_epoch(controller: Any, model: nn.Module, optimizer: Any, batches: Any) -> None:
    model.train()
    for images, labels in batches:
        controller.scheduler.step()
        loss: Tensor = F.cross_entropy(model(images), labels) + controller.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def run(seed: int, data: tuple[Images, Images], options: argparse.Namespace) -> dict[str, Any]:
    trials = Trials(data, seed, options)
    found = {"seed": seed, "baseline": trials.accuracy}
    print(f"# seed {seed}: {found['baseline']:.2f} % before compression", flush=True)
    found |= {"adaptive": trials.adaptive(), "sweep": trials.sweep()}
    print(f"# seed {seed}: {found}", flush=True)
    return found


def report(runs: list[dict[str, Any]]) -> str:
    lines = []
    for found in runs:
        sweep, loop = found["sweep"], found["adaptive"]
        share = loop["level"] / sweep["level"] if sweep["level"] else float("nan")
        lines.append(
            [
                *(found["seed"], f"{found['baseline']:.2f} %", f"{sweep['level']:.2f}"),
                *(sweep["epochs"], f"{loop['level']:.3f}", loop["epochs"]),
                *(f"{loop['metric']:.2f} %", "yes" if loop["met"] else "no"),
                *(f"{share:.2f}", f"{loop['epochs'] / sweep['epochs']:.2f}"),
            ]
        )
    header = ["seed", "FP32", "level by sweep", "its epochs", "level by loop", "its epochs",
              "accuracy", "goal met", "level / sweep", "epochs / sweep"]  # fmt: skip
    shares = [float(line[-2]) for line in lines]
    return markdown(header, lines) + "\nlevel / sweep: {:.2f} ± {:.2f}".format(
        *mean_and_spread(shares)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder with CIFAR-10; else scikit-learn's digits"
    )
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=4_000, help="of CIFAR-10, to train on")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage")
    parser.add_argument("--baseline-epochs", type=int, default=15)
    parser.add_argument("--drop", type=float, default=1.0, help="points that may be lost")
    parser.add_argument("--epochs", type=int, default=3, help="of each level, also of the loop")
    parser.add_argument("--budget", type=int, default=18, help="epochs of the loop, all in all")
    parser.add_argument("--start", type=float, default=0.3, help="level that the loop begins with")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of these epochs")
    parser.add_argument("--threads", type=int, default=2)
    levels = [round(0.05 * n, 2) for n in range(1, 19)]
    parser.add_argument("--levels", type=float, nargs="+", default=levels, help="of the sweep")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.data is None:
        data = digits()
    else:
        folder = options.data / "cifar10_jpeg"
        data = (
            read_images(find(folder, "train.zip"), options.images),
            read_images(find(folder, "test*.zip"), 2_000),
        )
    choices = {k: str(v) for k, v in vars(options).items() if k not in ("data", "output")}
    print(json.dumps(machine()))
    print(json.dumps(choices))
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        runs.append(run(seed, data, options))
        write(options.output, {"machine": machine(), "choices": choices, "runs": runs})
    print("\n" + report(runs))


if __name__ == "__main__":
    main()
