# SPDX-License-Identifier: Apache-2.0
"""What distillation is worth: ResNet-20 learns CIFAR-10 from ResNet-56, in FP32 and with 3 bits.

    python -m benchmarks.distillation_cifar10 --data FOLDER [--seeds 3] [--output FILE.json]
    python -m benchmarks.distillation_cifar10 --data FOLDER --full --device cuda

The folder is that of ``benchmarks.accuracy_cifar10``, with ``resnet56-*.th`` beside
``resnet20-*.th``. Both networks are first fine-tuned in floating point on a fixed part of the
training images. From there copies of ResNet-20 go on with the same images, order and learning
rates, each in its own way; the last epoch counts. The task's loss weighs ``1 − share``, that of
distillation ``share``. ``--full`` is the protocol of published figures: all images, 200 epochs.
Needs Pillow.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy_cifar10 import (
    Images,
    Placed,
    TrainingBatches,
    accuracy,
    read_images,
    read_network,
    train,
)
from benchmarks.records import find, machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, register_default_init_args

NO_LIMIT = 1e6


@dataclass(frozen=True)
class Variant:
    """One way to go on: bits of weights and activations, None for FP32, and distillation."""

    name: str
    bits: tuple[int, int] | None
    distillation: dict[str, Any] | None = None

    def sections(self, share: float) -> list[dict[str, Any]]:
        """Return the compression section of the configuration."""
        found: list[dict[str, Any]] = []
        if self.distillation is not None:
            kind = {"algorithm": "knowledge_distillation", "type": "softmax", "scale": share}
            found.append({**kind, **self.distillation})
        if self.bits is not None:
            weights, activations = ({"bits": bits} for bits in self.bits)
            found.append(
                {"algorithm": "quantization", "weights": weights, "activations": activations}
            )
        return found


def variants(bits: tuple[int, int]) -> list[Variant]:
    name = "w{}a{}".format(*bits)
    return [
        Variant("FP32", None),
        Variant("FP32, T=1", None, {"temperature": 1}),
        Variant("FP32, T=5", None, {"temperature": 5}),
        Variant(name, bits),
        Variant(f"{name}, T=1", bits, {"temperature": 1}),
        Variant(f"{name}, T=5", bits, {"temperature": 5}),
        Variant(f"{name}, T=5, no limit", bits, {"temperature": 5, "gradient_limit": NO_LIMIT}),
    ]


def run(seed: int, data: tuple[Images, Images], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the accuracies of one seed, in percent, by the names of variants."""
    torch.manual_seed(seed)
    training, test = data
    found: dict[str, Any] = {"seed": seed}

    def batches(order: int) -> Placed:
        return Placed(TrainingBatches(training, arguments.batch, order), arguments.device)

    def note(name: str, model: nn.Module) -> None:
        found[name] = accuracy(model, test)
        print(f"# seed {seed} {name}: {found[name]:.2f}", flush=True)

    start = arguments.baseline_epochs, arguments.baseline_rate
    networks = []
    for depth in (56, 20):
        model = read_network(arguments.data / "cifar10_resnet_weights", depth)
        model = model.to(arguments.device)
        train(model, batches(seed), *start)
        note({56: "teacher", 20: "student"}[depth], model)
        networks.append(model)
    teacher, student = networks
    for variant in variants(tuple(arguments.bits)):
        if arguments.variants is not None and variant.name not in arguments.variants:
            continue
        torch.manual_seed(seed)
        model, controller = copy.deepcopy(student), None
        sections = variant.sections(arguments.share)
        if sections:
            shape = {"input_info": {"sample_size": [1, 3, 32, 32]}, "target_device": "TRIAL"}
            config = NNCFConfig.from_dict({**shape, "compression": sections})
            register_default_init_args(config, batches(seed + 1000), teacher=teacher)
            controller, model = create_compressed_model(model, config, dump_graphs=False)
        weight = 1.0 if variant.distillation is None else 1 - arguments.share
        plan = arguments.epochs, arguments.rate, controller
        train(model, batches(seed + 1000), *plan, task_weight=weight)
        note(variant.name, model)
    return found


def report(runs: list[dict[str, Any]]) -> str:
    """Return one row per variant: the accuracies of all seeds, their mean and spread."""
    rows = []
    for name in [name for name in runs[0] if name != "seed"]:
        values = [found[name] for found in runs]
        mean, spread = mean_and_spread(values)
        listed = ", ".join(f"{value:.2f}" for value in values)
        rows.append([name, listed, f"{mean:.2f} ± {spread:.2f}"])
    return markdown(["ResNet-20", "accuracy of each seed, %", "mean ± spread"], rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the images and the weights")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", help='only these, as "FP32" "w3a3, T=1"')
    parser.add_argument("--images", type=int, default=10_000, help="images to train on")
    parser.add_argument("--baseline-epochs", type=int, default=4)
    parser.add_argument("--baseline-rate", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=4, help="of every variant")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate of these epochs")
    parser.add_argument("--bits", type=int, nargs=2, default=[3, 3], help="weights, activations")
    parser.add_argument("--share", type=float, default=0.7, help="of distillation in the loss")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="all images, 200 epochs, rate 0.1")
    chosen = parser.parse_args(arguments)
    if chosen.full:
        chosen.images, chosen.baseline_epochs, chosen.epochs, chosen.rate = None, 20, 200, 0.1
    return chosen


def main(arguments: list[str] | None = None) -> None:
    chosen = parse(arguments)
    if chosen.data is None:
        print("not measured: pass --data FOLDER, which holds the images and the weights")
        return
    torch.set_num_threads(chosen.threads)
    folder = chosen.data / "cifar10_jpeg"
    data = (
        read_images(find(folder, "train.zip"), chosen.images),
        read_images(find(folder, "test*.zip")),
    )
    choices = {name: str(value) for name, value in vars(chosen).items() if name != "data"}
    print(json.dumps(machine()))
    print(json.dumps(choices))
    print(f"{len(data[0].labels)} images to train on, {len(data[1].labels)} to evaluate on")
    runs = []
    for seed in range(chosen.seeds):
        runs.append(run(seed, data, chosen))
        write(chosen.output, {"machine": machine(), "choices": choices, "runs": runs})
    print("\n" + report(runs))


if __name__ == "__main__":
    main()
