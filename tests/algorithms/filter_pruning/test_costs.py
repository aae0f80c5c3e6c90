# SPDX-License-Identifier: Apache-2.0
"""Costs of a pruned model, compared with what PyTorch counts in the model without its channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import nncf
from tests.algorithms.filter_pruning.pruned import Residual, prune


class Varied(nn.Module):
    """Depthwise, grouped, transposed and dilated convolutions, a shared layer, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 24, 1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.shared = nn.Conv2d(24, 24, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(24, 32, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.hidden = nn.Linear(16, 40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.stem(x).relu()).relu()
        x = self.norm(self.pointwise(x)).relu()
        x = self.shared(self.shared(x).relu()).relu()
        x = self.up(self.grouped(x).relu()).relu()
        return self.head(self.hidden(x.mean((2, 3))).relu())


class OneDimensional(nn.Sequential):
    """Convolutions over sequences and a linear layer at every position."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 24, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in list(self)[:4]:
            x = layer(x)
        return self.head(x.transpose(1, 2)).mean(1)


def counted(model: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.rand(1, *shape))
    return counter.get_total_flops()


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize(
    ("network", "shape"),
    [(Residual, (3, 8, 8)), (Varied, (3, 8, 8)), (OneDimensional, (3, 20))],
)
def test_costs_are_those_of_the_model_without_its_channels(
    network: Any, shape: tuple[int, ...], level: float
) -> None:
    """FLOPs and parameters, whole and pruned, are exactly what PyTorch counts after strip."""
    model = network()
    whole = counted(model, shape), sum(p.numel() for p in model.parameters())
    config = nncf.NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [2, *shape]},  # costs are for one sample
            "compression": {
                "algorithm": "filter_pruning",
                "params": {
                    "prune_first_conv": True,
                    "prune_downsample_convs": True,
                    "channel_multiple": 2,
                },
            },
        }
    )
    controller, _ = nncf.create_compressed_model(model, config, dump_graphs=False)
    controller.set_pruning_level(level)
    found = controller.statistics().filter_pruning.model_statistics
    small = controller.strip()
    assert (found.full.flops, found.full.parameters) == whole
    assert found.current.flops == counted(small, shape)
    assert found.current.parameters == sum(p.numel() for p in small.parameters())
    assert level == 0 or found.flops_pruning_level > 0.2


def test_filters_are_counted_by_layer() -> None:
    """Layers that are added count each with its filters: 16 + 16 + 24 + 32."""
    controller = prune(Residual())
    controller.set_pruning_level(0.5)
    found = controller.statistics().filter_pruning.model_statistics
    assert (found.full.filters, found.current.filters) == (88, 8 + 8 + 16 + 16)
