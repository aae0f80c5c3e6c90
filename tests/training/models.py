# SPDX-License-Identifier: Apache-2.0
"""A small network on digits, its training functions, and configurations of the loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import nncf

PRUNING = {
    "algorithm": "filter_pruning",
    "params": {
        "pruning_target": 0.2,
        "pruning_steps": 1,
        "all_weights": True,
        "channel_multiple": 1,
        "prune_first_conv": True,
    },
}
MAGNITUDE = {
    "algorithm": "magnitude_sparsity",
    "params": {"sparsity_target": 0.4, "sparsity_target_epoch": 1, "sparsity_freeze_epoch": 2},
}
RB = {
    "algorithm": "rb_sparsity",
    "params": {"sparsity_target": 0.3, "sparsity_target_epoch": 1, "sparsity_freeze_epoch": 2},
}
QUANTIZATION = {"algorithm": "quantization", "initializer": {"range": {"num_init_samples": 64}}}
BITS = {
    **QUANTIZATION,
    "weights": {"adaptive_bits": [8, 4, 2]},
    "activations": {"adaptive_bits": [8, 4]},
    "first_and_last_bits": None,
}


class Net(nn.Module):
    """Two convolutions and a linear layer for images of 8×8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(F.max_pool2d(torch.relu(self.second(x)), 2).flatten(1))


@cache
def data() -> tuple[TensorDataset, TensorDataset]:
    """Return 512 digits to train on and 512 others."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    return TensorDataset(images[:512], labels[:512]), TensorDataset(
        images[512:1024], labels[512:1024]
    )


def accuracy(model: nn.Module) -> float:
    """Return the accuracy in percent."""
    images, labels = data()[1].tensors
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).double().mean().item() * 100


def loss(model: nn.Module) -> float:
    """Return the mean loss on the images to evaluate on."""
    images, labels = data()[1].tensors
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(images), labels).item()


def train_epoch(compression_ctrl: Any, model: nn.Module, optimizer: Any, **_: Any) -> float:
    """Train for one epoch in a random order; return the last loss."""
    model.train()
    for images, labels in DataLoader(data()[0], 64, shuffle=True):
        compression_ctrl.scheduler.step()
        found = F.cross_entropy(model(images), labels) + compression_ctrl.loss()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    return found.item()


@cache
def trained() -> tuple[dict[str, Tensor], float]:
    """Return the weights of a trained network, and its accuracy."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        model.train()
        for images, labels in DataLoader(data()[0], 64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.state_dict(), accuracy(model)


def config(*algorithms: dict[str, Any], mode: str, **params: Any) -> nncf.NNCFConfig:
    """Return a configuration of a loop."""
    defaults: dict[str, Any] = {"maximal_total_epochs": 8}
    if mode == "adaptive_compression_level":
        defaults |= {"initial_training_phase_epochs": 2, "patience_epochs": 1}
    if not any("degradation" in name for name in params):
        params["maximal_absolute_accuracy_degradation"] = 2.0
    found = nncf.NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 1, 8, 8]},
            "target_device": "TRIAL" if BITS in algorithms else "ANY",
            "compression": list(algorithms),
            "accuracy_aware_training": {"mode": mode, "params": {**defaults, **params}},
        }
    )
    return nncf.register_default_init_args(found, DataLoader(data()[0], 64))


def compressed(found: nncf.NNCFConfig) -> tuple[Any, nn.Module]:
    """Return the controller of the trained network, compressed, and the network."""
    model = Net()
    model.load_state_dict(trained()[0])
    return nncf.create_compressed_model(model, found, dump_graphs=False)


def optimizers(model: nn.Module, rate: float = 1e-3) -> Callable[[], tuple[Any, Any]]:
    """Return a function that makes an Adam and a falling learning rate for a model."""

    def configure() -> tuple[Any, Any]:
        masks = [p for name, p in model.named_parameters() if "compression" in name]
        others = [p for name, p in model.named_parameters() if "compression" not in name]
        groups = [{"params": others}, {"params": masks, "lr": 0.3}] if masks else others
        optimizer = torch.optim.Adam(groups, rate)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)

    return configure
