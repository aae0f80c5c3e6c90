# SPDX-License-Identifier: Apache-2.0
"""Small networks, data and configurations for the tests of mixed precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nncf


class Branching(nn.Module):
    """Three convolutions, two of which read one tensor, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.tanh(self.conv2(x)) + torch.tanh(self.conv3(x))
        return self.linear(self.drop(x.mean(dim=(2, 3))))


def data(size: int = 24, *, batch: int = 8) -> torch.utils.data.DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 5, (size,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch)


def config(
    precision: dict[str, Any], *, device: str = "TRIAL", registered: Any = None, **section: Any
) -> nncf.NNCFConfig:
    """Return a configuration with that precision section, with data and a criterion registered."""
    found = nncf.NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 3, 8, 8]},
            "target_device": device,
            "compression": {
                "algorithm": "quantization",
                "initializer": {
                    "range": {"num_init_samples": 8},
                    "batchnorm_adaptation": {"num_bn_adaptation_samples": 8},
                    "precision": precision,
                },
                **section,
            },
        }
    )
    extra = {"criterion": nn.CrossEntropyLoss()} if registered is None else registered
    return nncf.register_default_init_args(found, data(), **extra)


def compress(
    precision: dict[str, Any], *, model: nn.Module | None = None, state: Any = None, **rest: Any
) -> tuple[Any, nn.Module]:
    model = Branching() if model is None else model
    found: tuple[Any, nn.Module] = nncf.create_compressed_model(
        model, config(precision, **rest), compression_state=state, dump_graphs=False
    )
    return found


def widths(model: Any) -> dict[str, int]:
    """Return the bit widths of all quantizers, by name without the root's."""
    layout = model.compression.layout
    return {insert.name.removeprefix("Branching/"): insert.op.bits for insert in layout}


HAWQ = {"type": "hawq", "iter_number": 12, "num_data_points": 16}
CONV1, CONV2, CONV3, LINEAR = (
    f"Branching/{name}|WEIGHT"
    for name in (
        *("Conv2d[conv1]/conv2d_0", "Conv2d[conv2]/conv2d_0", "Conv2d[conv3]/conv2d_0"),
        "Linear[linear]/linear_0",
    )
)
SIZES = {CONV1: 108, CONV2: 288, CONV3: 32, LINEAR: 40}


def traces(**values: float) -> str:
    """Write a file of traces for the four layers; return its path."""
    names = {"conv1": CONV1, "conv2": CONV2, "conv3": CONV3, "linear": LINEAR}
    content = {names[name]: value for name, value in values.items()}
    Path("traces.json").write_text(json.dumps(content))
    return "traces.json"


def weight_widths(model: Any) -> dict[str, int]:
    return {i.name: i.op.bits for i in model.compression.layout if i.op.weight}


def weight_bytes(model: Any) -> float:
    return sum(SIZES[name] * bits for name, bits in weight_widths(model).items()) / 8
