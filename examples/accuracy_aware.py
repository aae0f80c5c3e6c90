# SPDX-License-Identifier: Apache-2.0
"""Prune and quantize a ResNet-18 as far as one point of accuracy allows, in one script.

The loop owns training: it asks the four functions below to train an epoch, to validate, and to make
an optimizer, and searches for the highest share of filters whose removal the goal allows. A run that
is stopped, also by Ctrl-C or a kill, goes on when the script is started again; ``--anew`` begins
a new one. Data, as in ``digits_int8.py``: scikit-learn's digits, or CIFAR-10 with ``--data FOLDER``.

    python examples/accuracy_aware.py [--data FOLDER] [--output FOLDER] [--width 16] [--anew]
"""

from __future__ import annotations

import argparse
import itertools
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from digits_int8 import Block, accuracy, cifar10, digits, train
from torch import nn
from torch.utils.data import DataLoader

from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.common.accuracy_aware_training import create_accuracy_aware_training_loop

HERE = Path(__file__).parent


def resnet18(classes: int, width: int) -> nn.Module:
    """Eight residual blocks in four stages (He et al. 2016), for images of 32x32."""
    layers = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes)
    )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 archives (default: digits)")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy_aware"))
    parser.add_argument("--width", type=int, default=8, help="channels at first; ResNet-18 has 64")
    parser.add_argument("--anew", action="store_true", help="do not go on with an earlier run")
    return parser.parse_args()


def trained(model: nn.Module, loader: DataLoader, epochs: int, path: Path) -> nn.Module:
    """The model with the weights of a file, or trained in floating point and saved there."""
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        print("Training in floating point")
        train(model, loader, epochs, rate=0.1)
        torch.save(model.state_dict(), path)
    return model


def main() -> None:
    arguments = options()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses packages that we don't use
    torch.manual_seed(0)
    nncf_config = NNCFConfig.from_json(HERE / "configs" / "resnet18_cifar10_accuracy_aware.json")
    train_data, test_data, classes = cifar10(arguments.data) if arguments.data else digits()
    loader = DataLoader(train_data, nncf_config["batch_size"], shuffle=True, drop_last=True)

    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / f"{'cifar10' if arguments.data else 'digits'}_{arguments.width}.pth"
    model = trained(resnet18(len(classes), arguments.width), loader, nncf_config["epochs"], file)
    float_accuracy = accuracy(model.eval(), test_data)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    register_default_init_args(nncf_config, loader)
    controller, model = create_compressed_model(model, nncf_config, dump_graphs=False)

    def train_epoch(compression_ctrl: Any, model: nn.Module, optimizer: Any, **_: Any) -> None:
        model.train()
        for images, labels in loader:
            compression_ctrl.scheduler.step()
            loss = F.cross_entropy(model(images), labels) + compression_ctrl.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def configure_optimizers() -> tuple[Any, Any]:
        rate = nncf_config["learning_rate"]
        return torch.optim.SGD(model.parameters(), rate, momentum=0.9), None

    loop = create_accuracy_aware_training_loop(nncf_config, controller, float_accuracy)
    model = loop.run(
        model,
        train_epoch_fn=train_epoch,
        validate_fn=lambda model: accuracy(model.eval(), test_data),
        configure_optimizers_fn=configure_optimizers,
        log_dir=arguments.output,
        resume=not arguments.anew,
    )
    print(loop.statistics.to_str())
    plain = controller.strip().eval()
    left = sum(tensor.numel() for tensor in plain.parameters())
    print(f"{parameters:,} parameters -> {left:,}; accuracy {accuracy(plain, test_data):.2f} %")
    written = arguments.output / "compressed.onnx"
    report = controller.export_model(str(written))  # proves that the file computes the same
    print(f"{written}: {written.stat().st_size:,} bytes, run by {report.runtime}")


if __name__ == "__main__":
    main()
