# SPDX-License-Identifier: Apache-2.0
"""Small models that between them have everything that makes compression hard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

CLASSES = 3


class Residual(nn.Module):
    """Convolutions, batch norms, an in-place addition, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.inner(x)
        y += x
        y = torch.relu_(y)
        y = torch.nn.functional.hardswish(self.depthwise(y))
        return self.head(self.dropout(y.mean((2, 3))))


class Sparse(Residual):
    """The same with more than half of the convolutions' and linear layers' weights zero."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for layer in (self.stem, self.inner, self.depthwise, self.head):
                layer.weight[layer.weight.abs() < 0.6 * layer.weight.abs().max()] = 0


class Shared(nn.Module):
    """One convolution called twice, a weight used by two layers, nested containers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)])
        self.heads[1].weight = self.heads[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = self.block(self.block(x))
        x = torch.cat([x, x.flip(3)], dim=3).mean((2, 3))
        return self.heads[0](x) - self.heads[1](torch.sigmoid(x))


class Named(nn.Module):
    """Takes and returns dictionaries; its weight has no layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(6, 1, 3, 3) / 3)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, *, image: torch.Tensor, scale: torch.Tensor) -> dict[str, Any]:
        features = torch.relu(torch.nn.functional.conv2d(image, self.filters)) * scale
        pooled = nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)
        return {"logits": self.head(pooled), "features": [features]}


class Recurrent(nn.Module):
    """An embedding and a bidirectional LSTM of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        sequence, _ = self.lstm(self.words(tokens))
        return self.head(sequence[:, -1])


class Transformer(nn.Module):
    """Encoder layers with ``nn.MultiheadAttention``, whose fast path hides everything."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 8) / 3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x + self.position).mean(1))


class Branching(nn.Module):
    """Takes one of two ways, by its data; the capture sees one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = self.up(x) if bool(x.mean() > 0.2) else self.down(x)
        return self.head(torch.relu(x))


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """A model class, its ``input_info``, and what it is called with.

    ``fused`` models have layers that PyTorch computes at once, with other last bits, where nothing
    is inserted into them.
    """

    model: Callable[[], nn.Module]
    input_info: Any
    inputs: Callable[[torch.Generator, int], Inputs]
    fused: bool = False

    def batch(self, seed: int, size: int = 4) -> Inputs:
        """Return the arguments of one call, the same for a seed."""
        return self.inputs(torch.Generator().manual_seed(seed), size)

    def fresh(self, seed: int = 0) -> nn.Module:
        """Return an instance with the weights of a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model()


def _rand(*shape: int) -> Callable[[torch.Generator, int], Inputs]:
    return lambda generator, size: ((torch.rand(size, *shape, generator=generator),), {})


def _words(generator: torch.Generator, size: int) -> Inputs:
    return (torch.randint(0, 11, (size, 7), generator=generator),), {}


def _named(generator: torch.Generator, size: int) -> Inputs:
    image = torch.rand(size, 1, 8, 8, generator=generator)
    return (), {"image": image, "scale": torch.rand(size, 1, 1, 1, generator=generator)}


EXAMPLES: Mapping[str, Example] = {
    "residual": Example(Residual, {"sample_size": [1, 1, 8, 8]}, _rand(1, 8, 8)),
    "sparse": Example(Sparse, {"sample_size": [1, 1, 8, 8]}, _rand(1, 8, 8)),
    "shared": Example(Shared, {"sample_size": [1, 1, 8, 8]}, _rand(1, 8, 8)),
    "named": Example(
        Named,
        [
            {"sample_size": [1, 1, 8, 8], "keyword": "image"},
            {"sample_size": [1, 1, 1, 1], "keyword": "scale"},
        ],
        _named,
    ),
    "recurrent": Example(Recurrent, {"sample_size": [1, 7], "type": "long"}, _words, fused=True),
    "transformer": Example(Transformer, {"sample_size": [1, 5, 8]}, _rand(5, 8), fused=True),
    "branching": Example(Branching, {"sample_size": [1, 8]}, _rand(8)),
}


def logits(output: Any) -> torch.Tensor:
    """Return the tensor that a loss is computed from."""
    found: torch.Tensor = output["logits"] if isinstance(output, Mapping) else output
    return found
