# SPDX-License-Identifier: Apache-2.0
"""Channels removed from one network of every family: it runs, and computes the same.

    pip install --no-deps torchvision timm pillow torch-pruning
    python -m benchmarks.pruning_families [--only 'vit|swin'] [--level 0.3]

Each network (random weights, batch norms that are not the identity) is pruned to ``--level`` in
every group. Then strip must give a network with fewer parameters whose output is that of the
masked one, to 1e-5 of the largest value. Beside it stands Torch-Pruning with the ratio and the
rounding to 8 channels, its grouping and its usual settings (the classifier is left alone, heads of
attention are named where timm has them): there the pruned network must run. What Torch-Pruning
computes cannot be compared: it has no masked form. Last comes the time to find the groups of a
network of 2,000 operations.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.records import machine, markdown, write
from nncf import NNCFConfig, create_compressed_model
from nncf.graph.channels import find_channels
from nncf.torch.capture import capture

# name, side of the image; torchvision's first, then timm's
_TORCHVISION = """
alexnet 96; vgg11_bn 64; resnet18 64; resnext50_32x4d 64; wide_resnet50_2 64; densenet121 64
googlenet 64; inception_v3 96; mobilenet_v2 64; mobilenet_v3_small 64; efficientnet_b0 64
mnasnet0_5 64; shufflenet_v2_x1_0 64; squeezenet1_1 64; regnet_y_400mf 64; convnext_tiny 64
vit_b_32 224; swin_t 64
"""
_TIMM = """
deit_tiny_patch16_224 224; poolformer_s12 64; mixer_s32_224 224; cspresnet50 64; ghostnet_050 64
hrnet_w18_small 64; coatnet_nano_rw_224 224; repvgg_a0 64; ese_vovnet19b_dw 64; xception41 96
mobilevit_s 64; dla34 64; res2net50_26w_4s 64; skresnet18 64; pit_ti_224 224; convnextv2_atto 64
"""
LEAST_SCALE = 0.5
LARGE = 2000
"""Operations of the network whose groups are timed."""


@dataclass
class Row:
    """What came of one network."""

    name: str
    ours: str
    parameters: tuple[int, int] = (0, 0)
    flops: float = 0.0
    error: float = 0.0
    seconds: float = 0.0
    peer: str = "not installed"

    def cells(self) -> list[str]:
        before, after = self.parameters
        return [
            *(self.name, self.ours, f"{before / 1e6:.2f}", f"{after / 1e6:.2f}"),
            *(f"{self.flops:.0%}", f"{self.error:.0e}", f"{self.seconds:.1f}", self.peer),
        ]


def networks() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """Return constructors by name, with the side of the image; those whose package is installed."""
    found: dict[str, tuple[Callable[[], nn.Module], int]] = {}
    for package, table in (("torchvision", _TORCHVISION), ("timm", _TIMM)):
        if importlib.util.find_spec(package) is None:
            print(f"not measured: {package} is not installed")
            continue
        for entry in filter(None, (item.strip() for item in re.split("[;\n]", table))):
            name, side = entry.split()
            found[name] = (_constructor(package, name, int(side)), int(side))
    return found


def _constructor(package: str, name: str, side: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        if package == "torchvision":
            import torchvision

            extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            return getattr(torchvision.models, name)(weights=None, **extra)  # type: ignore[no-any-return]  # a constructor
        import timm

        sized = {} if side < 100 else {"img_size": side}
        try:
            return timm.create_model(name, **sized)  # type: ignore[no-any-return]  # a model
        except TypeError:
            return timm.create_model(name)  # type: ignore[no-any-return]  # a model

    return make


def disturbed(model: nn.Module) -> nn.Module:
    """Give what a fresh layer has constant other values, so that mistakes show.

    Scales of norms, biases, but also heads of zeros and scales of branches of 1e-6, which would
    hide what the network computes.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                is_scale = bool(parameter.flatten()[0] > LEAST_SCALE)
                parameter.uniform_(0.5, 1.5) if is_scale else parameter.normal_(0, 0.1)
    return model.eval()


def prune(row: Row, model: nn.Module, side: int, level: float) -> None:
    """Prune with nncf and note what came of it."""
    section = {
        "algorithm": "filter_pruning",
        "params": {"prune_first_conv": True, "prune_downsample_convs": True},
    }
    config = {"input_info": {"sample_size": [1, 3, side, side]}, "compression": section}
    x = torch.rand(2, 3, side, side)
    before = sum(parameter.numel() for parameter in model.parameters())
    start = time.perf_counter()
    controller, model = create_compressed_model(
        model, NNCFConfig.from_dict(config), dump_graphs=False
    )
    controller.set_pruning_level(level)
    small = controller.strip()
    row.seconds = time.perf_counter() - start
    with torch.no_grad():
        masked, removed = model(x), small(x)
    row.error = float((masked - removed).abs().max() / masked.abs().max().clamp(min=1e-12))
    row.parameters = before, sum(parameter.numel() for parameter in small.parameters())
    row.flops = controller.statistics().filter_pruning.model_statistics.flops_pruning_level
    row.ours = "ok" if row.error < 1e-5 and row.parameters[1] < before else "FAILED"


def measure(name: str, make: Callable[[], nn.Module], side: int, level: float) -> Row:
    """Return the row of one network."""
    torch.manual_seed(0)
    model = disturbed(make())
    row = Row(name, "")
    if importlib.util.find_spec("torch_pruning") is not None:
        from benchmarks.peers import torch_pruning_peer

        twin = copy.deepcopy(model)
        row.peer = torch_pruning_peer.outcome(twin, torch.rand(1, 3, side, side), level)
    try:
        prune(row, model, side, level)
    except Exception as error:  # noqa: BLE001  # a row of the table, whatever it is
        row.ours = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return row


class Chain(nn.Sequential):
    """Residual blocks with 2,000 operations in all."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 64, 3, padding=1), *(_Link() for _ in range(LARGE // 6)))


class _Link(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64)
        self.second = nn.Conv2d(64, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


def time_of_groups() -> tuple[int, float]:
    """Return how many operations the large network has, and the seconds to find its channels."""
    x = torch.rand(1, 3, 8, 8)
    graph = capture(Chain(), lambda model: model(x), inputs=(x,)).graph
    start = time.perf_counter()
    find_channels(graph)
    return len(graph), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="networks whose name has this expression")
    parser.add_argument("--level", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(json.dumps(machine()))
    rows: list[Row] = []
    for name, (make, side) in networks().items():
        if re.search(arguments.only, name):
            rows.append(measure(name, make, side, arguments.level))
            print("#", *rows[-1].cells(), flush=True)
    header = ["network", "nncf", "M parameters", "left", "FLOPs gone", "error", "seconds",
              "Torch-Pruning"]  # fmt: skip
    print("\n" + markdown(header, [row.cells() for row in rows]))
    good = sum(row.ours == "ok" for row in rows)
    peer = sum(row.peer.startswith("runs") for row in rows)
    print(f"\nnncf: {good} of {len(rows)}; Torch-Pruning runs: {peer} of {len(rows)}")
    operations, seconds = time_of_groups()
    print(f"groups of {operations} operations: {seconds:.2f} s")
    results: dict[str, Any] = {"rows": [vars(row) for row in rows], "group_seconds": seconds}
    write(arguments.output, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
