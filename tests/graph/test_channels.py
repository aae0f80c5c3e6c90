# SPDX-License-Identifier: Apache-2.0
"""What each rule ties and pins: how many channels a layer may lose, with whom, or why none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nncf.graph.channels import NO_UNIT, Channels, find_channels
from nncf.torch.capture import capture


class Net(nn.Module):
    """Layers for ``code`` to use: ``a`` makes 8 channels of an image, ``head`` ends the network."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor], head: int = 8) -> None:
        super().__init__()
        self.code = code
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.c, self.narrow = nn.Conv2d(8, 8, 1), nn.Conv2d(3, 4, 1)
        self.groups2, self.groups4 = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, groups=4)
        self.depthwise, self.multiplied = (nn.Conv2d(8, n, 3, groups=8) for n in (8, 16))
        self.up = nn.ConvTranspose2d(8, 8, 2, bias=False)
        self.up2 = nn.ConvTranspose2d(8, 8, 2, groups=2, bias=False)
        self.batch, self.instance = nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True)
        self.group2, self.group1 = nn.GroupNorm(2, 8), nn.GroupNorm(1, 8)
        self.layer, self.rms, self.prelu = nn.LayerNorm(8), nn.RMSNorm(8), nn.PReLU(8)
        self.whole = nn.LayerNorm([8, 4, 4])
        self.table, self.linear, self.qkv = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 24)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.scale, self.short = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(1, 1))
        self.gamma = nn.Parameter(torch.rand(8))
        self.register_buffer("offset", torch.rand(8))
        self.head = nn.Linear(head, 5)

    def forward(self, x: Tensor) -> Tensor:
        made = self.code(self, x)
        if made.dim() > 2:
            made = made.mean((2, 3))
        return self.head(made)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def channels_of(code: Callable[[Any, Tensor], Tensor], head: int = 8) -> Channels:
    x = torch.rand(2, 3, 4, 4)
    return find_channels(capture(Net(code, head), lambda m: m(x), inputs=(x,)).graph)


def units(channels: Channels, name: str, axis: int = 0) -> list[int]:
    """Return the units along an axis of a parameter, without what stays."""
    found = channels.tensor_axes().get(name, {}).get(axis, np.zeros(0, dtype=int))
    return [int(unit) for unit in found if unit != NO_UNIT]


def freedom(channels: Channels, name: str, axis: int = 0) -> int:
    """Return how many different things an axis may lose."""
    return len(set(units(channels, name, axis)))


TIED: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, str]] = {
    "nothing": (lambda m, x: m.a(x), 8, "head.weight:1"),
    "add": (lambda m, x: m.a(x) + m.b(x), 8, "b.weight"),
    "multiply in place": (lambda m, x: m.a(x).mul_(m.b(x)), 8, "b.weight"),
    "maximum": (lambda m, x: torch.maximum(m.a(x), m.b(x)), 8, "b.weight"),
    "where": (lambda m, x: torch.where(x[:, :1] > 0, m.a(x), m.b(x)), 8, "b.weight"),
    "scale": (lambda m, x: m.a(x) * m.scale, 8, "scale"),
    "scale of all channels": (lambda m, x: m.a(x) * m.short, 8, "a.bias"),
    "moved parameter": (lambda m, x: m.a(x) * m.gamma.view(1, -1, 1, 1), 8, "gamma"),
    "buffer": (lambda m, x: m.a(x) + m.offset[:, None, None], 8, "offset"),
    "batch norm": (lambda m, x: m.batch(m.a(x)), 8, "batch.running_mean"),
    "instance norm": (lambda m, x: m.instance(m.a(x)), 8, "instance.weight"),
    "prelu": (lambda m, x: m.prelu(m.a(x)), 8, "prelu.weight"),
    "layer norm": (lambda m, x: m.layer(tokens(m.a(x))).mean(1), 8, "layer.bias"),
    "rms norm": (lambda m, x: m.rms(tokens(m.a(x))).mean(1), 8, "rms.weight"),
    "group norm loses groups": (lambda m, x: m.group2(m.a(x)), 2, "group2.weight"),
    "pooling": (lambda m, x: F.max_pool2d(m.a(x), 2), 8, "head.weight:1"),
    "resizing": (lambda m, x: F.interpolate(m.a(x), scale_factor=2), 8, "head.weight:1"),
    "sum over channels": (lambda m, x: m.a(x) - m.a(x).sum(1, keepdim=True), 8, "head.weight:1"),
    "mean over channels": (lambda m, x: m.a(x) - m.a(x).mean(1, keepdim=True), 8, "head.weight:1"),
    "maximum over channels": (lambda m, x: m.a(x) - m.a(x).amax(1, True), 8, "head.weight:1"),
    "normalize": (lambda m, x: F.normalize(m.a(x)), 8, "head.weight:1"),
    "convolution": (lambda m, x: m.c(m.a(x)), 8, "c.weight:1"),
    "transposed convolution": (lambda m, x: m.up(m.a(x)), 8, "up.weight:0"),
    "depthwise": (lambda m, x: m.depthwise(m.a(x)), 8, "depthwise.weight"),
    "four groups are lost whole": (lambda m, x: m.groups4(m.a(x)), 4, "groups4.weight"),
    "two groups lose the same": (lambda m, x: m.groups2(m.a(x)), 4, "groups2.weight:1"),
    "transposed in groups": (lambda m, x: m.up2(m.a(x)), 4, "up2.weight:0"),
    "shared layer": (lambda m, x: m.c(torch.relu(m.c(m.a(x)))), 8, "c.weight:1"),
    "chunk and join": (lambda m, x: torch.cat(m.a(x).chunk(2, 1)[::-1], 1), 4, "head.weight:1"),
    "every second": (lambda m, x: torch.cat([m.a(x)[:, ::2]] * 2, 1), 4, "head.weight:1"),
    "stack": (lambda m, x: torch.stack([m.a(x), m.b(x)]).sum(0), 8, "b.weight"),
    "channel shuffle": (lambda m, x: F.channel_shuffle(m.a(x), 2), 4, "head.weight:1"),
    "shuffle by view": (
        lambda m, x: m.a(x).view(2, 2, 4, 4, 4).transpose(1, 2).reshape(2, 8, 4, 4),
        4, "head.weight:1",
    ),
    "product with itself": (lambda m, x: (tokens(m.a(x)) @ tokens(m.b(x)).mT)[..., :8].mean(1), 8, "b.weight"),
    "embedding": (lambda m, x: m.table((x[:, 0, 0, 0] > 0).long()) + m.a(x).mean((2, 3)), 8, "table.weight:1"),
}  # fmt: skip


@pytest.mark.parametrize("case", TIED)
def test_tied(case: str) -> None:
    """The channels of ``a`` that can go, and that the other axis goes with them."""
    code, count, other = TIED[case]
    channels = channels_of(code)
    name, _, axis = other.partition(":")
    assert freedom(channels, "a.weight") == count
    assert set(units(channels, name, int(axis or 0))) == set(units(channels, "a.weight"))


WIDER: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, str]] = {
    "concat": (lambda m, x: torch.cat([m.a(x), m.narrow(x)], 1), 12, "narrow.weight"),
    "flatten": (lambda m, x: F.avg_pool2d(m.a(x), 2).flatten(1), 32, "a.weight"),
    "multiplied depthwise": (lambda m, x: m.multiplied(m.a(x)), 16, "multiplied.weight"),
    "padded channels": (lambda m, x: F.pad(m.a(x), (0, 0, 0, 0, 2, 2)), 12, "a.weight"),
    "pixel unshuffle": (lambda m, x: F.pixel_unshuffle(m.a(x), 2), 32, "a.weight"),
}


@pytest.mark.parametrize("case", WIDER)
def test_tied_to_another_length(case: str) -> None:
    """An axis of another length goes with the channels at the right places."""
    code, length, other = WIDER[case]
    channels = channels_of(code, head=length)
    along = channels.tensor_axes()["head.weight"][1]
    assert len(along) == length
    assert set(units(channels, other)) <= set(along.tolist())


PINNED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "softmax": (lambda m, x: m.a(x).softmax(1), "softmax is over channels"),
    "index of the largest": (lambda m, x: m.a(x) + m.a(x).argmax(1, keepdim=True), "argmax"),
    "values and indices": (lambda m, x: m.a(x) + m.a(x).max(1, True)[0], "max is over channels"),
    "roll": (lambda m, x: m.a(x).roll(1, 1), "roll is over channels"),
    "order by numbers": (lambda m, x: m.a(x)[:, [1, 0, 2, 3, 4, 5, 6, 7]], "needs all channels"),
    "one channel": (lambda m, x: m.a(x) + m.a(x)[:, 3:4] + m.a(x)[:, 3, None], "single channels"),
    "uneven steps": (lambda m, x: torch.cat([m.a(x)[:, k::3] for k in range(3)], 1), "unevenly"),
    "cumulative": (lambda m, x: m.a(x).cumsum(1), "cumsum needs all channels"),
    "fixed operand": (lambda m, x: m.a(x) + torch.ones(8, 1, 1), "channels stay"),
    "computed parameter": (lambda m, x: m.a(x) * m.scale.exp(), "channels stay"),
    "joined with the input": (lambda m, x: torch.stack([m.a(x), x.repeat(1, 3, 1, 1)[:, :8]]).sum(0), "channels stay"),
    "one group": (lambda m, x: m.group1(m.a(x)), "normalises over all channels"),
    "norm over the image": (lambda m, x: m.whole(m.a(x)), "normalises over several axes"),
    "attention of PyTorch": (lambda m, x: m.attention(*[tokens(m.a(x))] * 3)[0].mean(1), "one size for"),
    "recurrence": (lambda m, x: m.recurrent(tokens(m.a(x)))[0].mean(1), "a recurrent layer"),
    "computed weight": (lambda m, x: F.conv2d(m.a(x), m.c.weight.tanh()), "computed in the forward"),
}  # fmt: skip


@pytest.mark.parametrize("case", PINNED)
def test_pinned(case: str) -> None:
    """What cannot lose channels says why."""
    code, reason = PINNED[case]
    channels = channels_of(code)
    assert freedom(channels, "a.weight") == 0
    found = channels.reason_of(channels.labels.tensors["a.weight", 0])
    assert found is not None
    assert reason in found[1]


def test_outputs_stay() -> None:
    """The last layer's own channels are the model's outputs."""
    channels = channels_of(lambda m, x: m.a(x))
    assert freedom(channels, "head.weight") == 0
    reason = channels.reason_of(channels.labels.tensors["head.weight", 0])
    assert reason is not None
    assert reason[1] == "they are an output of the model"


def test_named_layers_stay() -> None:
    """Layers that the caller pins keep their channels, for the reason given; others do not."""
    x = torch.rand(2, 3, 4, 4)
    graph = capture(Net(lambda m, y: m.c(m.a(y))), lambda m: m(x), inputs=(x,)).graph
    channels = find_channels(graph, [("Net/Conv2d[a]/conv2d_0", "its user says so")])
    assert freedom(channels, "a.weight") == 0
    assert freedom(channels, "c.weight") == 8
    assert channels.reason_of(channels.labels.tensors["a.weight", 0]) == (
        "Net/Conv2d[a]/conv2d_0", "its user says so",
    )  # fmt: skip


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    made = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return made.transpose(1, 2).flatten(2).mean(1)


def heads_of(heads: int) -> Callable[[Any, Tensor], Tensor]:
    def code(m: Any, x: Tensor) -> Tensor:
        parts = m.qkv(tokens(m.a(x))).reshape(2, 16, 3, heads, 8 // heads)
        return attend(*parts.permute(2, 0, 3, 1, 4).unbind(0))

    return code


@pytest.mark.parametrize(("heads", "lost"), [(1, 8), (2, 4), (4, 4), (8, 8)])
def test_attention_loses_heads_or_their_channels(heads: int, lost: int) -> None:
    """Fused attention loses what there is more of, in queries, keys and values alike."""
    channels = channels_of(heads_of(heads))
    along = channels.tensor_axes()["qkv.weight"][0].reshape(3, -1)
    assert freedom(channels, "qkv.weight") == lost
    assert (along[0] == along[1]).all()
    assert set(units(channels, "head.weight", 1)) == set(along[2].tolist())


def test_attention_of_separate_projections() -> None:
    """Queries and keys lose channels together; values that meet a fixed matrix lose none."""

    def code(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.linear(tokens(m.a(x))), tokens(m.b(x)), tokens(m.c(m.a(x)))
        return ((q @ k.mT).softmax(-1) @ v @ torch.eye(8)).mean(1)

    channels = channels_of(code)
    assert set(units(channels, "linear.weight")) == set(units(channels, "b.weight"))
    assert freedom(channels, "b.weight") == 8
    assert freedom(channels, "c.weight") == 0


def test_places_that_must_not_see_hidden_channels() -> None:
    """Sums need zeros, norms values that change no statistics, means and maxima the mean."""

    def code(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        y = y + y.sum(1, keepdim=True) + y.mean(1, keepdim=True)
        return m.rms(m.layer(tokens(y))).mean(1)

    needs = channels_of(code).labels.needs
    assert [(need.kind, need.axis) for need in needs] == [
        ("zero", 1), ("mean", 1), ("statistics", 2), ("mean_square", 2),
    ]  # fmt: skip


def test_units_of_a_residual_network_are_few() -> None:
    """A chain of additions is one group: the labels of all its layers are the same units."""

    def code(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return y + m.c(y) + m.depthwise(F.pad(y, (1, 1, 1, 1))) + m.groups4(y)

    channels = channels_of(code)
    assert freedom(channels, "a.weight") == 4
    for name in ("c.weight", "depthwise.weight", "groups4.weight"):
        assert set(units(channels, name)) == set(units(channels, "a.weight"))
