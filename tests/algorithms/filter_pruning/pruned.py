# SPDX-License-Identifier: Apache-2.0
"""Small networks to prune, and how the tests prune them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import nncf


class Residual(nn.Module):
    """A stem, a residual block whose outputs are added, a head: widths 16, 24 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1)
        self.outer = nn.Conv2d(24, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(self.wide(x).relu().mean((2, 3)))


def config(*, registered: dict[str, Any] | None = None, **section: Any) -> nncf.NNCFConfig:
    """Return a configuration of filter pruning for 3 × 8 × 8 images; first layers are pruned too."""
    section["params"] = {"prune_first_conv": True, **section.get("params", {})}
    text = {
        "input_info": {"sample_size": [2, 3, 8, 8]},
        "compression": {"algorithm": "filter_pruning", **section},
    }
    found = nncf.NNCFConfig.from_dict(text)
    return nncf.register_default_init_args(found, **registered) if registered else found


def prune(
    model: nn.Module, *, registered: dict[str, Any] | None = None, state: Any = None, **section: Any
) -> Any:
    """Return the controller of the model under filter pruning."""
    controller, _ = nncf.create_compressed_model(
        model,
        config(registered=registered, **section),
        compression_state=state,
        dump_graphs=False,
    )
    return controller


def kept_filters(controller: Any) -> dict[str, int]:
    """Return how many filters each layer keeps, by the layer's name."""
    summary = controller.statistics().filter_pruning.model_statistics.pruned_layers_summary
    return {
        layer.name.partition("[")[2].partition("]")[0]: round(
            layer.weight_shape[0] * (1 - layer.filter_pruning_level)
        )
        for layer in summary
    }


def disturb(model: nn.Module) -> None:
    """Give norms and biases values that are not those of a fresh layer, so that mistakes show."""
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
