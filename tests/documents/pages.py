# SPDX-License-Identifier: Apache-2.0
"""Read the code blocks of our documents, and prepare what a page takes from its reader.

A ``text`` block that follows a ``python`` block shows what it prints; ``...`` in it stands for
anything. Blocks of one page share their variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, first line in the page, and what it prints."""

    language: str
    text: str
    line: int
    prints: str | None = None


def pages() -> list[str]:
    """Return the documents that are written for users, by name from the root."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks(page: str, *languages: str) -> list[Block]:
    """Return the blocks of a page, those of some languages only if any are given."""
    found = list(_blocks((ROOT / page).read_text(encoding="utf-8")))
    return [block for block in found if not languages or block.language in languages]


def _blocks(text: str) -> Iterator[Block]:
    matches = list(FENCE.finditer(text))
    for match, following in zip_longest(matches, matches[1:]):
        prints = None
        if (
            following
            and following[2] == "text"
            and not text[match.end() : following.start()].strip()
        ):
            prints = following[3]
        lines = [line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True)]
        yield Block(match[2], "".join(lines), text.count("\n", 0, match.start(3)), prints)


# ------------------------------------------------------------------------ what pages start with


def classifier() -> nn.Module:
    """Return a small network with convolutions, batch norm and a residual addition."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.stem(images)))
            x = torch.relu(self.conv(x) + x)
            return self.head(x.mean((2, 3)))

    return Net()


def wide_classifier() -> nn.Module:
    """Return a network with channels to spare behind its first convolution."""
    layers = [
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)),
    ]
    return nn.Sequential(*layers)


def a_training_script(*, transformer: bool = False, wide: bool = False) -> dict[str, Any]:
    """Return what every training script has: a model and its data."""
    layer = nn.TransformerEncoderLayer(32, 2, 64, activation="gelu", batch_first=True)
    sequences = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(32, 4))
    size = (10, 32) if transformer else (3, 32, 32)
    data = TensorDataset(torch.rand(64, *size), torch.randint(0, 4, (64,)))
    model = sequences if transformer else wide_classifier() if wide else classifier()
    return {"model": model, "train_loader": DataLoader(data, batch_size=16)}


def a_distilling_script() -> dict[str, Any]:
    """Return a training script that can make a second model."""
    return {**a_training_script(), "make_larger_model": classifier}


PREPARATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": a_training_script,
    "docs/algorithms/knowledge_distillation.md": a_distilling_script,
}
"""What the reader is assumed to have, by page; other pages start from nothing."""
