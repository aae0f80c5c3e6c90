# SPDX-License-Identifier: Apache-2.0
"""Training with RB sparsity reaches its level, on real digits, and keeps the accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import nncf


def digits() -> tuple[torch.Tensor, ...]:
    """Return images and labels for training, then for the test, of scikit-learn's digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.tensor(data.target)[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are not worth waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(model: nn.Module, data: Any, optimizer: Any, epochs: int, controller: Any = None) -> None:
    images, labels = data[:2]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        if controller is not None:
            controller.scheduler.epoch_step()
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            if controller is not None:
                controller.scheduler.step()
                loss = loss + controller.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Any) -> float:
    return float((model.eval()(data[2]).argmax(1) == data[3]).float().mean())


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_level_is_reached_with_little_loss(level: float) -> None:
    """Half and nine in ten weights go, within 0.05; accuracy falls by less than 2 points."""
    torch.manual_seed(0)
    data, model = digits(), network()
    train(model, data, torch.optim.Adam(model.parameters(), 1e-2), 8)
    before = accuracy(model, data)
    assert before > 0.96
    params = {"sparsity_target": level, "sparsity_target_epoch": 8, "sparsity_freeze_epoch": 14}
    config = {
        "input_info": {"sample_size": [1, 1, 8, 8]},
        "compression": {"algorithm": "rb_sparsity", "params": params},
    }
    controller, model = nncf.create_compressed_model(model, config, dump_graphs=False)
    masks = list(model.compression.parameters())
    known = {id(mask) for mask in masks}
    weights = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": weights, "lr": 2e-3}, {"params": masks, "lr": 0.2}]
    train(model, data, torch.optim.Adam(groups), 16, controller)
    plain = controller.strip()
    zeros = sum(int((plain.get_parameter(f"{n}.weight") == 0).sum()) for n in (0, 3, 7, 9))
    total = sum(plain.get_parameter(f"{n}.weight").numel() for n in (0, 3, 7, 9))
    assert zeros / total == pytest.approx(level, abs=0.05)
    assert controller.compression_stage() is nncf.CompressionStage.FULLY_COMPRESSED
    assert accuracy(plain, data) > before - 0.02
