# SPDX-License-Identifier: Apache-2.0
"""Random networks from everything that makes channels hard to follow."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.algorithms.filter_pruning.pruned import disturb

SIDE = 8
"""Height and width of the images."""

_ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Hardswish, nn.Softplus, nn.Identity)


class Block(nn.Module):
    """A part of a network with ``channels`` in and ``out`` channels out; its draws are in ``kind``."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__()
        self.channels = channels
        self.out = channels
        self.act = draw.choice(_ACTIVATIONS)()


def norm(channels: int, draw: random.Random) -> nn.Module:
    kind = draw.choice(["batch", "batch", "group", "instance", "none", "layer", "prelu"])
    made: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(channels),
        "group": lambda: nn.GroupNorm(
            draw.choice([g for g in (2, 4, channels) if channels % g == 0]), channels
        ),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=draw.random() < 0.5),
        "none": nn.Identity,
        "layer": lambda: ChannelLayerNorm(channels),
        "prelu": lambda: nn.PReLU(channels),
    }
    return made[kind]()


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv(inputs: int, outputs: int, draw: random.Random) -> nn.Module:
    size = draw.choice([1, 3])
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=draw.random() < 0.6)


class Plain(Block):
    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.out = draw.choice([8, 12, 16])
        self.conv, self.norm = conv(channels, self.out, draw), norm(self.out, draw)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Grouped(Block):
    """Depthwise, grouped and transposed convolutions."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        groups = draw.choice([g for g in (1, 2, 4, channels) if channels % g == 0])
        self.out = draw.choice([channels, 2 * channels])
        if draw.random() < 0.3:
            self.conv: nn.Module = nn.ConvTranspose2d(
                channels, self.out, 3, padding=1, groups=groups
            )
        else:
            self.conv = nn.Conv2d(channels, self.out, 3, padding=1, groups=groups)
        self.last = conv(self.out, channels, draw)
        self.norm, self.out = norm(self.out, draw), channels

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.norm(self.conv(x))))


class Residual(Block):
    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        width = draw.choice([8, 12])
        self.first, self.norm = conv(channels, width, draw), norm(width, draw)
        self.second = conv(width, channels, draw)
        self.in_place = draw.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.act(self.norm(self.first(x))))
        if self.in_place:
            y += x
            return y
        return y + x


class Squeeze(Block):
    """Squeeze and excitation."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.by_hand = draw.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True) if self.by_hand else F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(torch.relu(self.down(pooled))))


class Branches(Block):
    """Branches that are joined."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        widths = [draw.choice([4, 8]) for _ in range(draw.choice([2, 3]))]
        self.parts = nn.ModuleList(conv(channels, width, draw) for width in widths)
        self.with_input = draw.random() < 0.5
        self.out = sum(widths) + channels * self.with_input
        self.norm = norm(self.out, draw)

    def forward(self, x: Tensor) -> Tensor:
        parts = [part(x) for part in self.parts] + ([x] if self.with_input else [])
        return self.norm(torch.cat(parts, 1))


class Divided(Block):
    """Channels that go different ways after split, chunk, narrow, slices or unbind."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.way = draw.choice(["split", "pieces", "chunk", "narrow", "slice", "negative"])
        self.first = channels // 2 if self.way == "chunk" or draw.random() < 0.5 else channels // 4
        self.part = conv(self.first, self.first, draw)
        self.rejoined = draw.random() < 0.7
        self.last = conv(channels - self.first, channels, draw)
        self.join = conv(channels, channels, draw)

    def forward(self, x: Tensor) -> Tensor:
        k, n = self.first, self.channels
        if self.way == "split":
            a, b = torch.split(x, [k, n - k], dim=1)
        elif self.way == "pieces":
            parts = x.split(k, 1)
            a, b = parts[0], torch.cat(parts[1:], 1)
        elif self.way == "chunk":
            a, b = x.chunk(2, dim=1)
        elif self.way == "narrow":
            a, b = x.narrow(1, 0, k), torch.narrow(x, 1, k, n - k)
        elif self.way == "slice":
            a, b = x[:, :k], x[:, k:]
        else:
            a, b = x[:, : -(n - k), ...], x[:, -(n - k) :]
        a = self.act(self.part(a))
        return self.join(torch.cat([a, b], 1)) if self.rejoined else self.last(b)


class Gated(Block):
    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.conv = conv(channels, 2 * channels, draw)
        self.function = draw.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        if self.function:
            return F.glu(self.conv(x), dim=1)
        a, b = self.conv(x).chunk(2, 1)
        return self.act(a) * torch.sigmoid(b)


class Shuffled(Block):
    """Channels in another order: by view and transpose, channel shuffle or pixel shuffle."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.way = draw.choice(["view", "function", "pixel", "flip"])
        self.groups = draw.choice([2, 4])
        self.before = conv(channels, channels, draw)
        self.after = conv(channels // 4 if self.way == "pixel" else channels, channels, draw)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.way == "view":
            n, c, h, w = x.shape
            x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        elif self.way == "function":
            x = F.channel_shuffle(x, self.groups)
        elif self.way == "pixel":
            x = F.avg_pool2d(F.pixel_shuffle(x, 2), 2)
        else:
            x = x.flip(3).roll(1, 2)
        return self.after(x)


class Padded(Block):
    """The shortcut of small residual networks: fewer pixels, more channels, all zeros."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.added = draw.choice([4, 8])
        self.out = channels + 2 * self.added
        self.conv = nn.Conv2d(channels, self.out, 3, padding=1, bias=False)
        self.value = draw.choice([0.0, 0.5])

    def forward(self, x: Tensor) -> Tensor:
        padding = (0, 0, 0, 0, self.added, self.added)
        return self.act(self.conv(x) + F.pad(x, padding, "constant", self.value))


class Bare(Block):
    """Functional convolution, a scale for each channel, a shared layer."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.weight = nn.Parameter(torch.randn(channels, channels, 1, 1) / channels**0.5)
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.register_buffer("offset", torch.rand(1, channels, 1, 1))
        self.shared = conv(channels, channels, draw)
        self.twice = draw.random() < 0.6

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight) * self.scale + self.offset
        x = self.shared(x)
        return self.shared(self.act(x)) if self.twice else x


class Reduced(Block):
    """Something over all channels."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.way = draw.choice(["mean", "softmax", "max", "sum", "normalize", "norm"])
        self.conv = conv(channels, channels, draw)
        self.last = conv(channels, channels, draw)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == "mean":
            y = y - y.mean(1, keepdim=True)
        elif self.way == "softmax":
            y = y.softmax(1)
        elif self.way == "max":
            y = y * y.amax(1, keepdim=True)
        elif self.way == "sum":
            y = self.act(y) + self.act(y).sum(dim=1, keepdim=True)
        elif self.way == "normalize":
            y = F.normalize(self.act(y), dim=1)
        else:
            y = y / (self.act(y).norm(dim=1, keepdim=True) + 1)
        return self.last(y)


class Spatial(Block):
    """Pooling and resizing that keep the size."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.way = draw.choice(["max", "average", "resize"])

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "resize":
            return F.interpolate(F.max_pool2d(x, 2), scale_factor=2)
        pool = F.max_pool2d if self.way == "max" else F.avg_pool2d
        return pool(F.dropout(x, 0.1, self.training), 3, 1, 1)


class Attention(Block):
    """Self-attention of tokens: one projection or three, by hand or fused, heads by numbers."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.heads, self.size = draw.choice([(2, 8), (4, 4), (3, 8)])
        width = self.heads * self.size
        self.fused, self.function = draw.random() < 0.5, draw.random() < 0.5
        self.norm = nn.LayerNorm(channels) if draw.random() < 0.7 else nn.RMSNorm(channels)
        if self.fused:
            self.qkv = nn.Linear(channels, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(channels, width) for _ in range(3))
        self.proj = nn.Linear(width, channels)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t, _ = x.shape
        if self.fused:
            made = self.qkv(x).reshape(n, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
            q, k, v = made.unbind(0)
            return q, k, v
        q, k, v = (
            layer(x).view(n, t, self.heads, self.size).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self._heads(self.norm(x))
        if self.function:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.size**-0.5).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(n, t, self.heads * self.size))


class Tokens(Block):
    """A perceptron on tokens, gated or not."""

    def __init__(self, channels: int, draw: random.Random) -> None:
        super().__init__(channels, draw)
        self.norm = nn.LayerNorm(channels)
        self.gated = draw.random() < 0.5
        self.up = nn.Linear(channels, 24 * (1 + self.gated))
        self.down = nn.Linear(24, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(x))
        if self.gated:
            y, gate = y.chunk(2, dim=-1)
            y = y * F.gelu(gate)
        return x + self.gamma * self.down(self.act(y))


_IMAGE = (Plain, Plain, Grouped, Residual, Residual, Squeeze, Branches, Divided, Gated, Shuffled,
          Padded, Bare, Reduced, Spatial)  # fmt: skip


class RandomNetwork(nn.Module):
    """Images in, classes out: some blocks, sometimes tokens behind them, one of several heads."""

    image: tuple[Any, ...] = _IMAGE
    sequence: tuple[Any, ...] = (Attention, Tokens)

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        channels = 8
        blocks: list[Any] = []
        for _ in range(draw.randint(2, 5)):
            choice = draw.choice(self.image)
            if choice is Shuffled and channels % 4:
                choice = Plain
            blocks.append(choice(channels, draw))
            channels = blocks[-1].out
        self.blocks = nn.ModuleList(blocks)
        reused = draw.random() < 0.3
        self.adds = [reused and block.channels == block.out for block in blocks]
        self.tokens = nn.ModuleList()
        if draw.random() < 0.5:
            kinds = [draw.choice(self.sequence) for _ in range(draw.randint(1, 3))]
            self.tokens.extend(kind(channels, draw) for kind in kinds)
        self.head = draw.choice(["mean", "flatten", "view", "pool"])
        features = channels * 4 if self.head in ("flatten", "view") else channels
        self.features = features
        self.hidden = nn.Linear(features, 16)
        self.classes = nn.Linear(16, 5)
        disturb(self)

    def inputs(self, samples: int) -> Tensor:
        return torch.rand(samples, 3, SIDE, SIDE)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block, adds in zip(self.blocks, self.adds, strict=True):
            x = block(x) + x if adds else block(x)
        if len(self.tokens):
            n, c, h, w = x.shape
            tokens = x.flatten(2).transpose(1, 2)
            for block in self.tokens:
                tokens = block(tokens)
            x = tokens.transpose(1, 2).reshape(n, c, h, w)
        if self.head == "mean":
            x = x.mean((2, 3))
        elif self.head == "pool":
            x = F.adaptive_max_pool2d(x, 1).flatten(1)
        else:
            x = F.avg_pool2d(x, SIDE // 2)
            x = torch.flatten(x, 1) if self.head == "flatten" else x.reshape(-1, self.features)
        return self.classes(torch.relu(self.hidden(x)))
