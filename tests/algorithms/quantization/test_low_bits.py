# SPDX-License-Identifier: Apache-2.0
"""What is different with few bits: ends at 8 bits, starts with the least error, paced ranges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf.algorithms.quantization.ends import end_layers
from nncf.algorithms.quantization.options import QuantizationOptions
from nncf.algorithms.quantization.placement import plan
from nncf.algorithms.quantization.scheme import Scheme
from tests.graphs import Builder, chain
from tests.quantizers import made

NET = ("input", "convolution", "relu", "convolution", "relu", "convolution", "relu", "linear")
GROUPS: dict[str, Any] = {"weights": {"bits": 4}, "activations": {"bits": 3}}


def bits(**options: Any) -> dict[str, int]:
    """Return the bits of all planned quantizers of NET by name."""
    section = QuantizationOptions.model_validate({"algorithm": "quantization", **options})
    layout = plan(chain(*NET, "output"), section, target_device="TRIAL")
    return {insert.name.removeprefix("Net/"): insert.op.bits for insert in layout}


def test_first_and_last_layers_keep_8_bits() -> None:
    """Few bits for a group leave weights and inputs of the two ends at 8."""
    assert bits(**GROUPS) == {
        "/nncf_model_input_0|OUTPUT": 8,
        "convolution_0|WEIGHT": 8,
        "relu_0|OUTPUT": 3,
        "convolution_1|WEIGHT": 4,
        "relu_1|OUTPUT": 3,
        "convolution_2|WEIGHT": 4,
        "relu_2|OUTPUT": 8,
        "linear_0|WEIGHT": 8,
    }


def test_ends_can_have_other_bits() -> None:
    """Null gives the ends what all have; a number of bits is theirs; a scope wins over both."""
    assert set(bits(**GROUPS, first_and_last_bits=None).values()) == {3, 4}
    assert bits(**GROUPS, first_and_last_bits=6)["linear_0|WEIGHT"] == 6
    single = {"weights": {"Net/linear_0": {"bits": 2}}}
    found = bits(**GROUPS, scope_overrides=single)
    assert (found["linear_0|WEIGHT"], found["relu_2|OUTPUT"]) == (2, 8)


def test_groups_without_bits_are_left_alone() -> None:
    """Only the group that asks for few bits is concerned."""
    found = bits(weights={"bits": 2})
    assert {found[name] for name in found if name.endswith("OUTPUT")} == {8}
    assert [found[f"convolution_{i}|WEIGHT"] for i in range(3)] == [8, 2, 2]


def test_ends_are_strict() -> None:
    """A layer beside a skip connection is no end; with nothing in the middle there are none."""
    build = Builder()
    first = build.op("convolution", build.input())
    inner = build.op("convolution", first)
    second = build.op("convolution", build.op("add", first, inner))
    build.output(build.op("add", second, inner))
    assert end_layers(build.graph) == {"Net/convolution_0", "Net/convolution_2"}
    assert not end_layers(chain("input", "convolution", "relu", "linear", "output"))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("few", [2, 4])
def test_gradient_of_the_scale_is_that_of_learned_step_sizes(signed: bool, few: int) -> None:
    """The step's gradient is its plain one times 1 / √(n · highest code), n without the batch."""
    scheme = Scheme(bits=few, signed=signed)
    torch.manual_seed(0)
    x, pull = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    paced = made(replace(scheme, scaled_gradient=True))
    (paced(x) * pull).sum().backward()
    highest = scheme.levels(signed)[1]
    step = torch.tensor(1.0 / highest, requires_grad=True)
    low, high = scheme.levels(signed)
    ratio = (x / step).clamp(low, high)
    codes = ratio + (ratio.round() - ratio).detach()
    (codes * step * pull).sum().backward()
    expected = step.grad / (75 * highest) ** 0.5
    moved = paced.scale.grad / highest  # by which a step of SGD moves scale / highest
    assert moved.item() == pytest.approx(expected.item(), rel=1e-4)


def test_channels_and_weights_count_their_own_values() -> None:
    """A weight has no batch; with a range per channel n is the values of one channel."""
    weight = made(Scheme(bits=4, signed=True, weight=True, scaled_gradient=True))
    assert weight.gradient_factor(torch.rand(8, 4, 3, 3), weight._grid()).item() == pytest.approx(
        (7**3 / 288) ** 0.5
    )
    scheme = Scheme(bits=4, per_channel=True, channel_axis=0, weight=True, scaled_gradient=True)
    each = made(scheme, (8, 1, 1, 1))
    factor = each.gradient_factor(torch.rand(8, 4, 3, 3), each._grid())
    assert factor.tolist() == pytest.approx([(7**3 / 36) ** 0.5] * 8)


class Deep(nn.Module):
    """Three layers, the middle one with few bits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.middle(torch.relu(self.first(x))))
        return self.last(x.mean((2, 3)))


def compressed(**options: Any) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    section = {"algorithm": "quantization", "weights": {"bits": 3}, **options}
    text = {"input_info": {"sample_size": [1, 3, 8, 8]}, "target_device": "TRIAL"}
    config = nncf.NNCFConfig.from_dict({**text, "compression": section})
    nncf.register_default_init_args(config, [(torch.rand(8, 3, 8, 8), torch.zeros(8))])
    return nncf.create_compressed_model(Deep(), config, dump_graphs=False)


def test_ranges_start_with_the_least_error_by_default() -> None:
    """Unset, the type is "least_error" below 8 bits; "min_max" has the larger error."""
    written = {"initializer": {"range": {"type": "min_max"}}}
    errors = []
    for options in ({}, written):
        _, model = compressed(**options)
        quantizer = model.compression.ops["Deep/Conv2d[middle]/conv2d_0|WEIGHT"]
        errors.append((quantizer.bake(model.middle.weight) - model.middle.weight).square().sum())
    assert errors[0] < 0.9 * errors[1]


def test_pace_is_part_of_the_state() -> None:
    """Ranges with few bits are paced, 8-bit ones are not, also after resuming."""
    controller, _ = compressed()
    state = controller.get_compression_state()
    again, _ = nncf.create_compressed_model(
        Deep(),
        {"input_info": {"sample_size": [1, 3, 8, 8]}, "target_device": "TRIAL",
         "compression": {"algorithm": "quantization", "weights": {"bits": 3}}},
        compression_state=state,
        dump_graphs=False,
    )  # fmt: skip
    for found in (controller, again):
        for quantizer in found.all_quantizations.values():
            assert quantizer.scheme.scaled_gradient == (quantizer.scheme.bits == 3)


@pytest.mark.parametrize("signed", [True, None])
def test_one_signed_bit_is_the_sign_times_the_scale(signed: bool | None) -> None:
    """Two values without zero, with the gradients of learned step sizes, known or found signed."""
    scheme = Scheme(bits=1, signed=signed, per_channel=True, channel_axis=0, weight=True)
    quantizer = made(scheme, (2, 1), low=[-0.5, -2.0], high=[0.5, 2.0])
    x = torch.tensor([[-0.7, -0.2, 0.0, 0.3], [-3.0, -1.0, 0.5, 2.5]], requires_grad=True)
    pull = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    y = quantizer(x)
    assert y.tolist() == [[-0.5, -0.5, -0.5, 0.5], [-2.0, -2.0, 2.0, 2.0]]
    (y * pull).sum().backward()
    assert x.grad.tolist() == [[0, 2, 3, 4], [0, 6, 7, 0]]
    first = -1.0 + 2 * (-1 + 0.4) + 3 * -1 + 4 * (1 - 0.6)
    second = -5.0 + 6 * (-1 + 0.5) + 7 * (1 - 0.25) + 8
    assert quantizer.scale.grad.flatten().tolist() == pytest.approx([first, second])
    assert torch.equal(quantizer.bake(x), y)
    assert torch.equal(quantizer.native()(x.detach()), y)
    assert torch.equal(quantizer.native()(y.detach()), y)


def test_one_bit_of_positive_values_has_a_zero() -> None:
    """Activations behind a ReLU become zero or the scale."""
    quantizer = made(Scheme(bits=1), low=0.0, high=2.0)
    x = torch.tensor([0.0, 0.9, 1.1, 5.0])
    assert quantizer(x).tolist() == [0.0, 0.0, 2.0, 2.0]
    assert quantizer.native()(x).tolist() == [0.0, 0.0, 2.0, 2.0]


def test_one_bit_trains_and_deploys() -> None:
    """Weights of one bit start at their mean magnitude, train, and strip to two values."""
    controller, model = compressed(
        weights={"bits": 1, "per_channel": True}, activations={"bits": 1}
    )
    quantizer = model.compression.ops["Deep/Conv2d[middle]/conv2d_0|WEIGHT"]
    magnitude = model.middle.weight.abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(quantizer.scale, magnitude)
    before = model.middle.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.middle.weight)
    x = torch.rand(2, 3, 8, 8)
    small = controller.strip()
    assert [len(row.unique()) for row in small.middle.weight] == [2] * 8
    assert torch.equal(small(x), model.eval()(x))


class Normed(Deep):
    """The same with a batch norm in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(self.middle, nn.BatchNorm2d(8))


def test_batch_norms_can_be_measured_anew_at_the_end() -> None:
    """Statistics that training left behind are replaced; without data that is an error."""
    text = {
        "input_info": {"sample_size": [1, 3, 8, 8]},
        "compression": {"algorithm": "quantization"},
    }
    config = nncf.NNCFConfig.from_dict(text)
    nncf.register_default_init_args(config, [(torch.rand(8, 3, 8, 8), torch.zeros(8))] * 300)
    controller, model = nncf.create_compressed_model(Normed(), config, dump_graphs=False)
    norm = model.middle[1]
    measured = norm.running_mean.clone()
    norm.running_mean.fill_(9.0)
    controller.adapt_batch_norms()
    assert torch.allclose(norm.running_mean, measured, atol=1e-3)
    controller, _ = nncf.create_compressed_model(
        Normed(), nncf.NNCFConfig.from_dict(text), dump_graphs=False
    )
    with pytest.raises(nncf.DataError, match="no data loader is registered"):
        controller.adapt_batch_norms()
