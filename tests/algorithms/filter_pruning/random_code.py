# SPDX-License-Identifier: Apache-2.0
"""Random networks whose code says sizes in many ways, for images and for texts."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.algorithms.filter_pruning.pruned import disturb
from tests.algorithms.filter_pruning.random_networks import Block, RandomNetwork, Residual, conv

WORDS = 13


class Scaled(Block):
    """Parameters and buffers that are moved before they meet the channels."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.way = draw.choice(["view", "none", "reshape", "expand", "buffer", "computed"])
        self.conv = conv(channels, channels, draw)
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)
        self.wide = nn.Parameter(torch.rand(1, channels, 1, 1))
        self.register_buffer("offset", torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == "view":
            return y * self.gamma.view(1, -1, 1, 1) + x
        if self.way == "none":
            return y + self.gamma[None, :, None, None] * x
        if self.way == "reshape":
            return y * self.gamma.reshape(-1, 1, 1).contiguous()
        if self.way == "expand":
            return y + self.wide.expand(x.shape[0], -1, *x.shape[2:])
        if self.way == "buffer":
            return y - self.offset[:, None, None]
        return y * self.gamma[:, None, None] + torch.tanh(self.gamma).sum()


class Counted(Block):
    """Sizes and scales that are computed from shapes, and steps between channels."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        ways = ["rest", "product", "mean", "cbam", "unflatten", "batch", "einsum", "unbind", "pool"]
        self.way = draw.choice(ways + ["steps"] * (channels % 2 == 0))
        self.before, self.after = conv(channels, channels, draw), conv(channels, channels, draw)
        self.parts = draw.choice([n for n in (2, 4) if channels % n == 0])

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y, parts = self.before(x), self.parts
        if self.way == "rest":
            first, second = y.split([parts, y.shape[1] - parts], 1)
            y = torch.cat([self.act(first), second], 1)
        elif self.way == "product":
            y = self.act(y.reshape(n, self.channels * h * w)).reshape(n, self.channels, h, w)
        elif self.way == "mean":
            y = y - y.sum(1, keepdim=True) / y.shape[1]
        elif self.way == "cbam":
            y = y * torch.sigmoid(y.mean(1, keepdim=True) + y.amax(1, keepdim=True))
        elif self.way == "unflatten":
            grouped = y.unflatten(1, (parts, -1))
            y = (self.act(grouped) + grouped.sum(1, keepdim=True)).flatten(1, 2)
        elif self.way == "batch":
            y = self.act(x.reshape(n * c, h, w)).view(n, c, h * w).reshape(n, c, h, w) + y
        elif self.way == "einsum":
            y = y * torch.einsum("bchw,bchw->bc", x, y)[:, :, None, None]
        elif self.way == "unbind":
            first, second = y.reshape(n, 2, self.channels // 2, h, w).unbind(1)
            y = torch.cat([second, self.act(first)], 1)
        elif self.way == "pool":
            y = y * torch.sigmoid(
                F.adaptive_avg_pool2d(y, 1).view(n, self.channels)[..., None, None]
            )
        else:
            y = torch.cat([y[:, ::2], self.act(y[:, 1::2])], 1)
        return self.after(y)


class WrittenAttention(Block):
    """Attention by hand, as many repositories have it."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.way = draw.choice(["batch", "first", "width", "scale", "windows", "einsum"])
        self.heads = draw.choice([2, 4])
        self.width = 16
        self.qkv, self.proj = nn.Linear(channels, 48), nn.Linear(16, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gamma
        made: Tensor = getattr(self, f"_{self.way}")(self.qkv(y))
        return x + self.proj(made)

    def _batch(self, qkv: Tensor) -> Tensor:
        b, n, _ = qkv.shape
        h, d = self.heads, self.width // self.heads
        q, k, v = (
            part.reshape(b, n, h, d).transpose(1, 2).reshape(b * h, n, d)
            for part in qkv.chunk(3, -1)
        )
        made = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return made.view(b, h, n, -1).transpose(1, 2).reshape(b, n, self.width)

    def _first(self, qkv: Tensor) -> Tensor:
        n, b, _ = qkv.transpose(0, 1).shape
        q, k, v = (
            part.contiguous().view(n, b * self.heads, self.width // self.heads).transpose(0, 1)
            for part in qkv.transpose(0, 1).chunk(3, -1)
        )
        made = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return made.transpose(0, 1).contiguous().view(n, b, self.width).transpose(0, 1)

    def _width(self, qkv: Tensor) -> Tensor:
        b, n, c = qkv.shape
        q, k, v = qkv.view(b, n, 3, self.heads, c // 3 // self.heads).permute(2, 0, 3, 1, 4)
        made = (q @ k.mT).softmax(-1) @ v
        return made.transpose(1, 2).reshape(b, n, c // 3)

    def _scale(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.split(self.width, -1)
        return ((q @ k.transpose(1, 2)) / q.size(-1) ** 0.5).softmax(-1) @ v

    def _windows(self, qkv: Tensor) -> Tensor:
        b, n, c = qkv.shape
        qkv = qkv.view(b, n // 4, 4, c).reshape(-1, 4, c)
        q, k, v = qkv.reshape(qkv.shape[0], 4, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        made = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return made.view(b, n // 4, 4, -1).view(b, n, self.width)

    def _einsum(self, qkv: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv.chunk(3, -1))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


class Sequences(Block):
    """Convolutions along the tokens: plain, depthwise, transposed, gated."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.gated = draw.random() < 0.5
        self.up = nn.Conv1d(channels, 12 * (1 + self.gated), 1)
        kind = draw.choice([nn.Conv1d, nn.ConvTranspose1d])
        self.middle = kind(12, 12, 3, padding=1, groups=draw.choice([1, 2, 12]))
        self.norm = nn.BatchNorm1d(12)
        self.down = nn.Conv1d(12, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x.transpose(1, 2))
        if self.gated:
            y = F.glu(y, 1)
        return x + self.down(self.act(self.norm(self.middle(y)))).permute(0, 2, 1)


class Mixed(Block):
    """A perceptron along the tokens, for 64 of them."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.up, self.down = nn.Linear(64, 12), nn.Linear(12, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x.transpose(1, 2)))).transpose(1, 2)


class RandomCode(RandomNetwork):
    """Images in, classes out, through code that computes sizes."""

    image = (Scaled, Counted, Counted, Residual)
    sequence = (WrittenAttention, WrittenAttention, Sequences, Mixed)


class RandomText(nn.Module):
    """Words in, words out: embeddings, a first token, positions, and sometimes tied weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.width = draw.choice([12, 16])
        self.table = nn.Embedding(WORDS, self.width)
        self.token = nn.Parameter(torch.rand(1, 1, self.width))
        self.positions = nn.Parameter(torch.rand(1, 9, self.width))
        kinds = [draw.choice([WrittenAttention, Sequences]) for _ in range(draw.randint(1, 3))]
        for index, kind in enumerate(kinds):
            made: Any = kind(self.width, draw)
            while getattr(made, "way", "") == "windows":
                made = kind(self.width, draw)
            kinds[index] = made
        self.blocks = nn.ModuleList(kinds)  # type: ignore[arg-type]  # made of their classes above
        self.last = nn.Linear(self.width, self.width)
        self.tied = draw.choice(["not", "itself", "transposed", "scaled"])
        self.separate = nn.Linear(self.width, WORDS)
        disturb(self)

    def inputs(self, samples: int) -> Tensor:
        return torch.randint(0, WORDS, (samples, 7))

    def forward(self, words: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(words), -1, -1), self.table(words)], dim=1)
        x = x + self.positions[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = torch.sigmoid(self.last(x[:, 0] + x[:, 1:].mean(1)))
        if self.tied == "itself":
            return F.linear(x, self.table.weight)
        if self.tied == "transposed":
            return x @ self.table.weight.T
        if self.tied == "scaled":
            return F.linear(x, self.table.weight * 0.5)
        return self.separate(x)


def random_network(seed: int) -> Any:
    """Return a network of one of the three kinds."""
    return (RandomNetwork, RandomCode, RandomText)[seed % 3](seed)
