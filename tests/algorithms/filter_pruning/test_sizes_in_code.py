# SPDX-License-Identifier: Apache-2.0
"""Whatever way a model's code says its sizes, the small model computes what the masked one does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nncf
from tests.algorithms.filter_pruning.pruned import prune

LEVELS = (0.3, 0.5, 0.75)


class Written(nn.Module):
    """A convolution of 16 channels, then code in the style ``way``, a method of a subclass."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3, 16, 1)
        self.next = nn.Conv2d(16, 16, 1)
        self.q, self.k, self.v, self.qkv = (nn.Linear(16, n) for n in (16, 16, 16, 48))
        self.proj = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)
        self.gamma = nn.Parameter(torch.rand(16) + 0.5)
        self.token = nn.Parameter(torch.rand(1, 1, 16))
        self.positions = nn.Parameter(torch.rand(1, 99, 16))
        self.register_buffer("offset", torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = getattr(self, self.way)(torch.relu(self.stem(x)))
        return self.head(found)


class Attention(Written):
    """Sizes of heads, tokens and batches."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.stem(x)).flatten(2).transpose(1, 2)
        made: Tensor = getattr(self, self.way)(tokens)
        return self.head(tokens + self.proj(made)).mean(1)

    def width_from_the_input(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)

    def heads_in_the_batch(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part.reshape(b, n, 4, -1).transpose(1, 2).reshape(b * 4, n, -1)
            for part in self.qkv(x).chunk(3, -1)
        )
        made = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return made.view(b, 4, n, -1).transpose(1, 2).reshape(b, n, -1)

    def heads_in_the_batch_by_numbers(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part.contiguous().view(b, n, 4, 4).transpose(1, 2).reshape(b * 4, n, 4)
            for part in self.qkv(x).chunk(3, -1)
        )
        made = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return made.view(b, 4, n, 4).transpose(1, 2).reshape(b, n, 16)

    def tokens_first(self, x: Tensor) -> Tensor:
        n, b, _ = x.transpose(0, 1).shape
        q, k, v = (
            part.contiguous().view(n, b * 4, 4).transpose(0, 1)
            for part in self.qkv(x.transpose(0, 1)).chunk(3, -1)
        )
        made = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return made.transpose(0, 1).contiguous().view(n, b, 16).transpose(0, 1)

    def windows(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        x = self.v(x).view(b, 2, 4, 2, 4, 16).permute(0, 1, 3, 2, 4, 5).contiguous()
        x = x.view(-1, 16, 16)
        q = self.q(x).reshape(x.shape[0], 16, 4, c // 4).permute(0, 2, 1, 3)
        x = ((q @ q.transpose(-2, -1)).softmax(-1) @ q).transpose(1, 2).reshape(x.shape[0], 16, c)
        return x.view(b, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, 64, c)

    def head_size_from_the_width(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        q = q * (c // 2) ** -0.5
        return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(n, t, c)

    def scale_of_the_query(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        return ((q @ k.transpose(1, 2)) / math.sqrt(q.size(-1))).softmax(-1) @ self.v(x)

    def scale_as_a_tensor(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        scale = torch.sqrt(torch.tensor(q.size(-1), dtype=q.dtype))
        return ((q @ k.transpose(1, 2)) / scale).softmax(-1) @ self.v(x)

    def scale_as_a_power(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)).softmax(-1) @ self.v(x)

    def scale_of_a_head_from_the_input(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k = (layer(x).view(b, n, 2, 8).transpose(1, 2) for layer in (self.q, self.k))
        weights = ((q * (c // 2) ** -0.5) @ k.transpose(2, 3)).softmax(-1)
        return weights.mean(1) @ self.v(x)

    def root_mean_square_by_hand(self, x: Tensor) -> Tensor:
        return self.v(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gamma)

    def class_token(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        joined = joined + self.positions[:, : joined.shape[1]]
        return self.q(joined)[:, 1:] + self.v(joined)[:, :1]


class Image(Written):
    """Sizes of images."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = getattr(self, self.way)(torch.relu(self.stem(x)))
        return self.head(found.mean((2, 3)))

    def scale_reshaped(self, x: Tensor) -> Tensor:
        return x + self.next(x) * self.gamma.reshape(1, -1, 1, 1)

    def buffer_indexed(self, x: Tensor) -> Tensor:
        return self.next(x) - self.offset[None, :, None, None]

    def parameter_computed_elsewhere(self, x: Tensor) -> Tensor:
        return self.next(x * self.gamma[:, None, None] * torch.exp(self.gamma).mean())

    def every_second(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, ::2], x[:, 1::2]], 1)

    def mean_by_hand(self, x: Tensor) -> Tensor:
        return self.next(x - x.sum(1, keepdim=True) / x.shape[1])

    def mean_and_maximum(self, x: Tensor) -> Tensor:
        return self.next(x * torch.sigmoid(x.mean(1, keepdim=True) + x.amax((1,), keepdim=True)))

    def flattened_by_a_product(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return self.next(x.reshape(n, 16 * h * w).reshape(n, 16, h, w))

    def channels_in_the_batch(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        patches = x.reshape(b * c * (h // 2), 2, w // 2, 2).transpose(1, 2)
        patches = patches.reshape(b, c, h * w // 4, 4).transpose(1, 3)
        patches = (patches.reshape(b * 4, h * w // 4, -1) * self.gamma).view(b, 4, h * w // 4, -1)
        x = patches.transpose(1, 3).reshape(b * c * (h // 2), w // 2, 2, 2).transpose(1, 2)
        return self.next(x.reshape(b, c, h, w))

    def pooled_and_flattened(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True).view(x.shape[0], 16)
        return self.next(x * torch.sigmoid(pooled.view(x.shape[0], 16, 1, 1)))

    def channels_joined_with_the_batch_twice(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n * c, 2, h // 2, w).transpose(1, 2).reshape(n, c, h * w)
        y = torch.sigmoid(y.transpose(1, 2)).reshape(n, h, w, c).permute(0, 3, 1, 2)
        return self.next(y.contiguous().view(n * c, h, w).view(n, 16, h, w))

    def split_before_indices(self, x: Tensor) -> Tensor:
        first, second = torch.tensor_split(x, (6,), dim=1)
        left, right = torch.hsplit(self.next(torch.cat([second, first], 1)), [8])
        return torch.cat([right, left], 1)

    def single_channels_between_positions(self, x: Tensor) -> Tensor:
        return self.next(x + x[:, 3:4] + x[:, -2:-1] + x[:, :-1].sum(1, keepdim=True))

    def rest_of_the_channels(self, x: Tensor) -> Tensor:
        first, second = x.split([4, x.shape[1] - 4], 1)
        return self.next(torch.cat([torch.sigmoid(first), second], 1))


def _ways(*classes: type[Written]) -> list[Written]:
    torch.manual_seed(0)  # of few channels the last of a piece may be left, and that one stays
    return [
        made(name)
        for made in classes
        for name in vars(made)
        if not name.startswith("_") and name != "forward"
    ]


@pytest.mark.parametrize("model", _ways(Attention, Image), ids=lambda model: model.way)
def test_small_model_computes_the_same(model: Written) -> None:
    """Masked and small agree for every way to say a size, with other batches, and pruned twice."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    x = torch.rand(2, 3, 8, 8)
    controller = prune(model.eval(), params={"channel_multiple": 1})
    for level in LEVELS:
        controller.set_pruning_level({group.number: level for group in controller.groups})
        small = controller.strip()
        _check_agreement(controller.model, small, x)
    again = prune(small, params={"channel_multiple": 1}, pruning_init=0.5)
    _check_agreement(again.model, again.strip(), x)


@pytest.mark.parametrize("model", _ways(Attention, Image), ids=lambda model: model.way)
def test_a_batch_of_one_is_enough_to_look_at(model: Written) -> None:
    """The small model takes other batches also when the model was looked at with a batch of one."""
    text = {
        "input_info": {"sample_size": [1, 3, 8, 8]},
        "compression": {
            "algorithm": "filter_pruning",
            "params": {"channel_multiple": 1, "prune_first_conv": True},
        },
    }
    controller, masked = nncf.create_compressed_model(
        model.eval(), nncf.NNCFConfig.from_dict(text), dump_graphs=False
    )
    controller.set_pruning_level({group.number: 0.5 for group in controller.groups})
    _check_agreement(masked, controller.strip(), torch.rand(2, 3, 8, 8))


def _check_agreement(masked: nn.Module, small: nn.Module, x: Tensor) -> None:
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in masked.parameters())
    for batch in (x, x[:1], torch.cat([x, x, x])):
        with torch.no_grad():
            expected, found = masked.eval()(batch), small.eval()(batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_size_of_the_image_may_change() -> None:
    """Where height and width are joined with channels by number, other images still fit."""
    model = Image("flattened_by_a_product").eval()
    controller = prune(model, pruning_init=0.5, params={"channel_multiple": 1})
    _check_agreement(model, controller.strip(), torch.rand(3, 3, 12, 6))


class Tied(nn.Module):
    """An embedding whose weight is the last layer's, taken in the style ``way``."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.table, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 12), nn.Linear(12, 16)

    def forward(self, indices: Tensor) -> Tensor:
        x = self.down(torch.relu(self.up(self.table(indices))))
        weight = self.table.weight
        if self.way == "itself":
            return F.linear(x, weight)
        if self.way == "transposed":
            return x @ weight.T
        return F.linear(x, weight * 2)


@pytest.mark.parametrize(("way", "groups"), [("itself", 2), ("transposed", 2), ("scaled", 1)])
def test_tied_weights(way: str, groups: int) -> None:
    """A weight with two uses loses channels in both, or, where it is computed with, in none."""
    x = torch.randint(0, 20, (2, 7))
    config = {"input_info": {"sample_size": [2, 7], "type": "long"},
              "compression": {"algorithm": "filter_pruning", "pruning_init": 0.5,
                              "params": {"channel_multiple": 1}}}  # fmt: skip
    controller, model = nncf.create_compressed_model(
        Tied(way).eval(), nncf.NNCFConfig.from_dict(config), dump_graphs=False
    )
    assert len(controller.groups) == groups
    torch.testing.assert_close(controller.strip()(x), model(x), rtol=1e-4, atol=1e-5)


def test_code_out_of_sight_keeps_channels() -> None:
    """What code in a gap, or an index of channels, reads stays as long as it was."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(n, 16, 1) for n in (3, 16, 16))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            with nncf.torch.no_nncf_trace():
                scale = (y * torch.ones(1, 16, 1, 1)).mean()
            z = self.second(y * scale)[:, torch.arange(15, -1, -1)]
            return self.third(z).mean((1, 2, 3))

    controller = prune(Hidden(), pruning_init=0.5)
    assert [group.name for group in controller.groups] == ["third"]
    reasons = " ".join(controller.groups.excluded.values())
    assert "not captured" in reasons
    assert "__getitem__ needs all channels" in reasons


def test_norms_without_parameters_say_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """An instance norm without parameters knows how many channels it is given."""
    layers = [nn.Conv2d(3, 16, 1), nn.InstanceNorm2d(16), nn.Conv2d(16, 4, 1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 2)).eval()
    stripped = prune(model, pruning_init=0.5).strip()
    stripped(torch.rand(2, 3, 8, 8))
    assert stripped[1].num_features == 8
    assert not [str(w.message) for w in recwarn if "num_features" in str(w.message)]
