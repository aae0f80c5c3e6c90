# SPDX-License-Identifier: Apache-2.0
"""INT8 quantization-aware training, from a trained network to a deployed file, in one script.

Trains a small residual network on scikit-learn's handwritten digits (enlarged to 32x32), adds
INT8 quantization with the five lines marked below, fine-tunes, writes ONNX and OpenVINO IR, and
prints what was gained. With ``--data FOLDER`` it uses CIFAR-10 instead, read from the archives
``train.zip`` and ``test*.zip`` of images named ``<class>/<name>.jpg`` in that folder.

    python examples/digits_int8.py [--data FOLDER] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nncf
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.compression.controller import CompressionController
from nncf.compression.parity import ParityReport
from nncf.onnx.run import OnnxFile
from nncf.openvino.run import OpenVINOFile

HERE = Path(__file__).parent


# the data -------------------------------------------------------------------------------------


def digits() -> tuple[TensorDataset, TensorDataset, list[str]]:
    """The 1,797 digits of scikit-learn, 8x8 grey, enlarged to 3x32x32; every fifth is held back."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(32, 32), mode="bilinear").repeat(1, 3, 1, 1)
    labels = torch.tensor(data.target)
    held_back = torch.arange(len(images)) % 5 == 0
    train = TensorDataset(images[~held_back] - 0.5, labels[~held_back])
    return train, TensorDataset(images[held_back] - 0.5, labels[held_back]), list("0123456789")


def cifar10(folder: Path, limit: int = 10_000) -> tuple[TensorDataset, TensorDataset, list[str]]:
    """CIFAR-10 from zip archives of JPEG files, the first ``limit`` training images."""
    tests = sorted(folder.glob("test*.zip"))
    if not (folder / "train.zip").exists() or not tests:
        raise SystemExit(f"--data {folder}: expected train.zip and test*.zip in that folder")
    train_images, train_labels, names = read_zip(folder / "train.zip", limit)
    test_images, test_labels, _ = read_zip(tests[0], limit)
    mean, std = (
        train_images.mean((0, 2, 3), keepdim=True),
        train_images.std((0, 2, 3), keepdim=True),
    )
    train = TensorDataset((train_images - mean) / std, train_labels)
    return train, TensorDataset((test_images - mean) / std, test_labels), names


def read_zip(path: Path, limit: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        files = [name for name in archive.namelist() if name.endswith(".jpg")]
        names = sorted({Path(name).parent.name for name in files})
        chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:limit]]
        arrays = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in chosen]
    labels = torch.tensor([names.index(Path(name).parent.name) for name in chosen])
    return torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255, labels, names


# the network ----------------------------------------------------------------------------------


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of one block each, and a linear classifier."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.stages(self.stem(x)).mean(dim=(2, 3)))


# training: an ordinary loop; `controller` is the only thing that compression adds to it ----------


def train(
    model: nn.Module,
    loader: DataLoader,
    epochs: int,
    rate: float,
    controller: CompressionController | None = None,
) -> None:
    optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=epochs * len(loader)
    )
    for epoch in range(epochs):
        if controller:
            controller.scheduler.epoch_step()
        model.train()
        for images, labels in loader:
            if controller:
                controller.scheduler.step()
            loss = F.cross_entropy(model(images), labels)
            if controller:
                loss = loss + controller.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def accuracy(predict: Callable[..., Any], data: TensorDataset, batch: int = 100) -> float:
    """Return the percentage of images whose highest output is their label."""
    loader = DataLoader(data, batch_size=batch)
    hits = sum((torch.as_tensor(predict(x)).argmax(1) == y).sum().item() for x, y in loader)
    return 100 * hits / len(data)


# measuring the files ----------------------------------------------------------------------------


def runner(file: OnnxFile | OpenVINOFile) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a batch of one image, as an array, to the outputs of a file."""
    name = file.input_names[0]
    return lambda image: next(iter(file({name: image}).values()))


def latencies(
    runners: dict[str, Callable[..., Any]], image: np.ndarray, rounds: int = 200
) -> dict[str, float]:
    """Return the median milliseconds of each file, measured in turn so that noise is shared."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(rounds + 20):
        for name, run in runners.items():
            start = time.perf_counter()
            run(image)
            if turn >= 20:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 archives (default: digits)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/digits_int8"), help="where files go"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses packages that we don't use

    nncf_config = NNCFConfig.from_json(HERE / "configs" / "digits_int8.json")  # line 1
    nncf_config["log_dir"] = str(arguments.output)
    train_data, test_data, classes = cifar10(arguments.data) if arguments.data else digits()
    train_loader = DataLoader(train_data, nncf_config["batch_size"], shuffle=True, drop_last=True)

    print(f"Training in floating point on {len(train_data)} images")
    model = ResNet(len(classes))
    train(model, train_loader, nncf_config["epochs"], rate=0.1)
    float_accuracy = accuracy(model.eval(), test_data)
    arguments.output.mkdir(parents=True, exist_ok=True)
    float_path = arguments.output / "float.onnx"
    example = test_data[0][0][None]
    with contextlib.redirect_stderr(io.StringIO()):  # the exporter warns of its own use of torch
        torch.onnx.export(model, (example,), float_path, external_data=False, verbose=False)

    print("Adding INT8 quantization and fine-tuning")
    nncf_config = register_default_init_args(nncf_config, train_loader)  # line 2
    controller, model = create_compressed_model(model, nncf_config)  # line 3
    train(model, train_loader, nncf_config["fine_tuning_epochs"], 0.01, controller)  # lines 4, 5
    int8_accuracy = accuracy(model.eval(), test_data)

    print("Writing the deployed files; each is run and compared with the trained model")
    reports = [
        controller.export_model(str(arguments.output / name)) for name in ("int8.onnx", "int8.xml")
    ]
    in_torch = f"In PyTorch: FP32 {float_accuracy:.2f} %, INT8 {int8_accuracy:.2f} %"
    report(arguments.output, test_data, in_torch, reports)


def report(
    output: Path, test_data: TensorDataset, in_torch: str, parities: list[ParityReport]
) -> None:
    rows = {
        "FP32, ONNX Runtime": (OnnxFile(output / "float.onnx"), "float.onnx"),
        "INT8, ONNX Runtime": (OnnxFile(output / "int8.onnx"), "int8.onnx"),
        "FP32, OpenVINO": (OpenVINOFile(output / "float.onnx"), "float.onnx"),
        "INT8, OpenVINO": (OpenVINOFile(output / "int8.xml"), "int8.bin"),
    }
    runners = {name: runner(file) for name, (file, _) in rows.items()}
    times = latencies(runners, test_data[0][0][None].numpy())
    table = Table(title="FP32 against INT8")
    for column in ("", "accuracy", "file", "latency, batch 1"):
        table.add_column(column, justify="right" if column else "left")
    for name, (_, weights) in rows.items():
        size = (output / weights).stat().st_size / 1024
        deployed = accuracy(lambda x, run=runners[name]: run(x.numpy()), test_data, batch=1)
        table.add_row(name, f"{deployed:.2f} %", f"{size:.0f} KiB", f"{times[name]:.2f} ms")
    console = Console()
    for parity in parities:
        output_parity = parity.outputs[0]
        console.print(
            f"{parity.runtime} against the trained model: same class for "
            f"{output_parity.agreement:.0%} of the samples compared, root mean square difference "
            f"{output_parity.deviation:.2%}, every layer within one level"
        )
    console.print(table)
    console.print(in_torch)
    console.print(f"nncf {nncf.__version__}, torch {torch.__version__}; the files are in {output}")


if __name__ == "__main__":
    main()
