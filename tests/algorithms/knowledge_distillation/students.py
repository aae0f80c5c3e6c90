# SPDX-License-Identifier: Apache-2.0
"""A small student, teachers for it, and what one does with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import nncf


class Small(nn.Module):
    """A convolution, a batch norm, dropout and a head."""

    def __init__(self, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(x.mean((2, 3))))


class Told(nn.Module):
    """Returns what a function makes of the input and of a linear layer's result."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(self, x, self.head(x.flatten(1)))


def images(seed: int = 0, count: int = 5, side: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


def config(*beside: dict[str, Any], side: int = 6, **options: Any) -> nncf.NNCFConfig:
    """Return a configuration of distillation, by default of type softmax."""
    section = {"algorithm": "knowledge_distillation", "type": "softmax", **options}
    return nncf.NNCFConfig.from_dict(
        {"input_info": {"sample_size": [1, 1, side, side]}, "compression": [section, *beside]}
    )


def distilled(
    model: nn.Module,
    *beside: dict[str, Any],
    teacher: Any = None,
    state: Any = None,
    **options: Any,
) -> tuple[Any, nn.Module]:
    """Return ``(controller, model)``, the model in training mode."""
    side = 4 if isinstance(model, Told) else 6
    made = config(*beside, side=side, **options)
    batches = [(images(seed, side=side), torch.zeros(5)) for seed in range(3)]
    nncf.register_default_init_args(made, batches, teacher=teacher)
    controller, model = nncf.create_compressed_model(model, made, state, dump_graphs=False)
    return controller, model.train()


def hook_counts(model: nn.Module) -> list[int]:
    return [
        len(hooks)
        for m in model.modules()
        for hooks in (
            m._forward_pre_hooks,
            m._forward_hooks,
            m._forward_hooks_always_called,
            m._forward_hooks_with_kwargs,
            m._forward_pre_hooks_with_kwargs,
        )
    ]
