# SPDX-License-Identifier: Apache-2.0
"""Models under magnitude sparsity, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import nncf


class Net(nn.Module):
    """Two convolutions, a batch norm and a linear layer: 8·4·9 + 8·8·9 + 3·8 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


NAMES = ("conv1", "conv2", "head")
SIZES = {"conv1": 288, "conv2": 576, "head": 24}


def config(**section: Any) -> nncf.NNCFConfig:
    """Return a configuration with this section of the algorithm."""
    return nncf.NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 4, 6, 6]},
            "compression": {"algorithm": "magnitude_sparsity", **section},
        }
    )


def sparsified(
    model: nn.Module | None = None, state: Any = None, **section: Any
) -> tuple[Any, nn.Module]:
    """Return ``(controller, model)``; the model is a Net unless given."""
    torch.manual_seed(0)
    found: tuple[Any, nn.Module] = nncf.create_compressed_model(
        Net() if model is None else model, config(**section), state, dump_graphs=False
    )
    return found


def masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what is kept, by the name of the layer."""
    ops = model.compression.ops
    found = {}
    for name, op in ops.items():
        layer = name.partition("[")[2].partition("]")[0]
        found[layer] = op.kept()
    return found


def dropped(model: nn.Module) -> dict[str, int]:
    """Return how many weights are dropped, by the name of the layer."""
    return {name: int((~kept).sum()) for name, kept in masks(model).items()}
