# SPDX-License-Identifier: Apache-2.0
"""Accuracy of SqueezeNet 1.1 on ImageNet samples after INT8 initialisation, without training.

    python -m benchmarks.accuracy_imagenet_samples --data FOLDER [--seeds 3] [--output FILE.json]

The folder holds ``squeezenet1_1.pth`` (a state dict with torchvision's key names, for BGR images
of 0…255 minus 104, 117, 123) and ``imagenet_samples*.zip`` (JPEG images, at least 227 pixels
high and wide, whose names begin with the class index: ``0012_n01530575.jpg``).

No image is judged by ranges that it helped to find. Each seed parts the images into two halves;
each half calibrates the network that is then evaluated on the other, so that all images count
once. ``lost`` and ``gained`` are the images that only the floating-point network, or only the
INT8 one, gets right: their difference is the drop. Needs Pillow.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import squeezenet1_1
from benchmarks.records import find, machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, register_default_init_args

SIDE = 227
MEANS = (104.0, 117.0, 123.0)  # of blue, green, red

RANGE_TYPES = (
    "mixed_min_max", "min_max", "mean_min_max", "threesigma", "percentile", "mean_percentile",
)  # fmt: skip
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "per-tensor weights": {"weights": {"per_channel": False}},
    "no overflow fix": {"overflow_fix": "disable"},
    "per-tensor weights, no overflow fix": {
        "weights": {"per_channel": False},
        "overflow_fix": "disable",
    },
    "preset mixed": {"preset": "mixed"},
    **{f"range {name}": {"initializer": {"range": {"type": name}}} for name in RANGE_TYPES[1:]},
}
"""Settings beside ``{"algorithm": "quantization"}``; the default's range is mixed_min_max."""


def read_images(archive: Path) -> tuple[Tensor, Tensor]:
    """Return images, float32 [n, 3, 227, 227] as the network takes them, and their classes."""
    images, labels = [], []
    with zipfile.ZipFile(archive) as files:
        for name in sorted(n for n in files.namelist() if n.endswith(".jpg")):
            image = Image.open(io.BytesIO(files.read(name))).convert("RGB")
            left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
            crop = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
            images.append(torch.from_numpy(crop[:, :, ::-1] - np.float32(MEANS)).permute(2, 0, 1))
            labels.append(int(Path(name).name.split("_")[0]))
    return torch.stack(images), torch.tensor(labels)


def read_network(weights: Path) -> nn.Module:
    model = squeezenet1_1()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


@torch.no_grad()
def best_five(model: nn.Module, images: Tensor, batch: int) -> Tensor:
    """Return the five best classes of every image, [n, 5]."""
    model.eval()
    return torch.cat([model(part).topk(5).indices for part in images.split(batch)])


def compress(model: nn.Module, images: Tensor, section: dict[str, Any], batch: int) -> nn.Module:
    """Return a quantized copy of the model whose ranges come from ``images``."""
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 3, SIDE, SIDE]},
            "compression": {"algorithm": "quantization", **section},
        }
    )
    targets = torch.zeros(len(images), dtype=torch.long)  # initialisation reads no target
    loader = DataLoader(TensorDataset(images, targets), batch_size=batch)
    register_default_init_args(config, loader)
    return create_compressed_model(copy.deepcopy(model), config, dump_graphs=False)[1]


def judge(found: Tensor, reference: Tensor, labels: Tensor) -> dict[str, float]:
    """Compare the five best classes with those of the floating-point model, in percent."""
    right, right_before = found[:, 0] == labels, reference[:, 0] == labels

    def percent(hits: Tensor) -> float:
        return 100 * hits.double().mean().item()

    return {
        "top1": percent(right),
        "top5": percent((found == labels[:, None]).any(1)),
        "top1_drop": percent(right_before) - percent(right),
        "top5_drop": percent((reference == labels[:, None]).any(1))
        - percent((found == labels[:, None]).any(1)),
        "lost": percent(right_before & ~right),
        "gained": percent(right & ~right_before),
        "same_class": percent(found[:, 0] == reference[:, 0]),
    }


@dataclass(frozen=True)
class Samples:
    """Images, their classes, the floating-point model's five best classes, and the batch size."""

    images: Tensor
    labels: Tensor
    reference: Tensor
    batch: int


def measure(
    model: nn.Module, samples: Samples, section: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Calibrate on each half of the images and judge on the other."""
    images, labels, reference = samples.images, samples.labels, samples.reference
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    halves = order.chunk(2)
    found = torch.empty_like(reference)
    parts = []
    for calibration, rest in (halves, halves[::-1]):
        compressed = compress(model, images[calibration], section, samples.batch)
        found[rest] = best_five(compressed, images[rest], samples.batch)
        part = judge(found[rest], reference[rest], labels[rest])
        parts.append({"calibrated_on": len(calibration), "evaluated_on": len(rest), **part})
    return {"seed": seed, **judge(found, reference, labels), "halves": parts}


def report(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """Return the row of one configuration: means over seeds, with the spread of the drop."""
    drop, spread = mean_and_spread(run["top1_drop"] for run in runs)
    drop5, spread5 = mean_and_spread(run["top5_drop"] for run in runs)
    others = [
        f"{mean_and_spread(run[key] for run in runs)[0]:.1f}"
        for key in ("lost", "gained", "same_class")
    ]
    return [name, f"{drop:+.2f} ± {spread:.2f}", f"{drop5:+.2f} ± {spread5:.2f}", *others]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the images and the weights")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--seeds", type=int, default=3, help="how many ways to halve the images")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.data is None:
        print("not measured: pass --data FOLDER, which holds the images and the weights")
        return
    torch.set_num_threads(arguments.threads)
    archive = find(arguments.data, "imagenet_samples*.zip")
    images, labels = read_images(archive)
    model = read_network(find(arguments.data, "squeezenet1_1.pth"))
    reference = best_five(model, images, arguments.batch)
    samples = Samples(images, labels, reference, arguments.batch)
    floating = judge(reference, reference, labels)
    print(json.dumps(machine()))
    print(f"{archive.name}: {len(images)} images; floating point", end=" ")
    print(f"top-1 {floating['top1']:.2f}, top-5 {floating['top5']:.2f}")
    print(
        f"each half calibrates (batches of {arguments.batch}), the other is evaluated; "
        f"{arguments.seeds} ways to halve\n"
    )
    results: dict[str, list[dict[str, Any]]] = {}
    record = {"machine": machine(), "batch": arguments.batch, "floating_point": floating}
    for name in arguments.only:
        start = time.perf_counter()
        results[name] = [
            measure(model, samples, CONFIGURATIONS[name], seed) for seed in range(arguments.seeds)
        ]
        print(f"# {name}: {time.perf_counter() - start:.0f} s", flush=True)
        write(arguments.output, {**record, "int8": results})
    header = ["settings", "top-1 drop", "top-5 drop", "lost", "gained", "same class as FP32, %"]
    print("\n" + markdown(header, [report(name, runs) for name, runs in results.items()]))


if __name__ == "__main__":
    main()
