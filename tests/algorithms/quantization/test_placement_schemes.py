# SPDX-License-Identifier: Apache-2.0
"""Planned quantizers have the scheme that device and configuration ask for."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from nncf.algorithms.quantization.demands import common_schemes
from nncf.algorithms.quantization.placement import plan, potential_weights
from nncf.algorithms.quantization.scheme import Scheme
from nncf.compression.layout import Insert, Layout
from nncf.errors import ConfigError, ModelError
from nncf.graph.graph import Parameter
from tests.graphs import Builder, chain

NET = ("input", "convolution", "relu", "convolution", "relu", "linear", "output")


def place(graph: Any, device: str = "ANY", **options: Any) -> Layout:
    return plan(graph, SimpleNamespace(**options), target_device=device)


def named(layout: Layout, name: str) -> Insert:
    (found,) = [item for item in layout if item.name == f"Net/{name}"]
    return found


def group(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(**options)


def test_defaults() -> None:
    """Weights are signed, symmetric, per output channel; activations symmetric per tensor."""
    layout = place(chain(*NET))
    weight = named(layout, "convolution_1|WEIGHT")
    assert weight.op == Scheme(
        signed=True, per_channel=True, channel_axis=0, half_range=True, weight=True
    )
    assert weight.shape == (8, 1, 1, 1)
    assert named(layout, "relu_0|OUTPUT").op == Scheme()


@pytest.mark.parametrize(
    ("device", "fix", "half"),
    [
        ("ANY", "enable", [True, True, True]),
        ("CPU", "first_layer_only", [True, False, False]),
        ("CPU", "disable", [False, False, False]),
        ("CPU_SPR", "enable", [False, False, False]),
        ("GPU", "enable", [False, False, False]),
        ("TRIAL", "enable", [False, False, False]),
    ],
)
def test_overflow_fix(device: str, fix: str, half: list[bool]) -> None:
    """8-bit weights keep to half of the grid where asked, elsewhere they drop the lowest level."""
    found = [item.op for item in place(chain(*NET), device, overflow_fix=fix) if item.op.weight]
    assert [op.half_range for op in found] == half
    assert [op.narrow_range for op in found] == [not value for value in half]


@pytest.mark.parametrize(
    ("preset", "mode"), [(None, "symmetric"), ("performance", "symmetric"), ("mixed", "asymmetric")]
)
def test_presets(preset: str | None, mode: str) -> None:
    """Presets choose the mode of activations; weights stay symmetric."""
    layout = place(chain(*NET), preset=preset)
    assert {item.op.mode for item in layout if not item.op.weight} == {mode}
    assert {item.op.mode for item in layout if item.op.weight} == {"symmetric"}


def test_group_wins_over_preset() -> None:
    """The mode of a group wins over the preset."""
    layout = place(chain(*NET), preset="mixed", activations=group(mode="symmetric"))
    assert {item.op.mode for item in layout} == {"symmetric"}


def test_vpu_refuses_preset() -> None:
    """A preset for VPU is an error."""
    with pytest.raises(ConfigError, match="VPU"):
        place(chain(*NET), "VPU", preset="mixed")


def test_vpu_says_that_padding_is_not_adjusted(caplog: pytest.LogCaptureFixture) -> None:
    """What is not done for VPU is logged."""
    with caplog.at_level(logging.WARNING, logger="nncf"):
        place(chain(*NET), "VPU")
    assert "padding" in caplog.text


def test_constraints() -> None:
    """Signedness and granularity of a group reach every quantizer of it alone."""
    layout = place(chain(*NET), weights=group(per_channel=False), activations=group(signed=True))
    assert {item.op.per_channel for item in layout} == {False}
    assert {item.op.signed for item in layout if not item.op.weight} == {True}
    assert {item.shape for item in layout} == {(1,)}


def test_impossible_constraint() -> None:
    """Bits that the device lacks are an error that names the device and the way out."""
    with pytest.raises(ConfigError, match=r"(?s)bits 4.*ANY.*TRIAL"):
        place(chain(*NET), weights=group(bits=4))


def test_trial_takes_everything() -> None:
    """Without a hardware description any bits and mode are taken, per tensor by default."""
    weights = group(bits=3, mode="asymmetric", per_channel=True)
    layout = place(chain(*NET), "TRIAL", weights=weights, activations=group(bits=5))
    op = named(layout, "linear_0|WEIGHT").op
    assert (op.bits, op.mode, op.per_channel, op.narrow_range) == (3, "asymmetric", True, False)
    assert named(layout, "relu_0|OUTPUT").op.bits == 5
    assert not any(item.op.per_channel for item in place(chain(*NET), "TRIAL"))


def test_scope_overrides() -> None:
    """Overrides of single operations win over group and preset, key by key."""
    overrides = group(
        weights={"Net/linear_0": group(bits=4), "{re}linear": group(per_channel=False)},
        activations={"{re}convolution_1": group(mode="asymmetric", bits=6)},
    )
    weights = group(bits=2, per_channel=True)
    layout = place(chain(*NET), "TRIAL", weights=weights, scope_overrides=overrides)
    linear = named(layout, "linear_0|WEIGHT").op
    assert (linear.bits, linear.per_channel) == (4, False)
    assert named(layout, "convolution_1|WEIGHT").op.bits == 2
    assert named(layout, "relu_0|OUTPUT").op.mode == "asymmetric"
    assert named(layout, "relu_0|OUTPUT").op.bits == 6


def test_learning_rate_and_logarithm() -> None:
    """Multiplier and logarithmic scale are copied into the schemes of their group."""
    layout = place(chain(*NET), compression_lr_multiplier=2.5, weights=group(logarithm_scale=True))
    assert {item.op.lr_multiplier for item in layout} == {2.5}
    assert {item.op.logarithm_scale for item in layout if item.op.weight} == {True}
    assert {item.op.logarithm_scale for item in layout if not item.op.weight} == {False}


def test_transposed_weight_axis() -> None:
    """Transposed convolutions have their output channels on axis 1."""
    found = named(
        place(chain("input", "transposed_convolution", "output")), "transposed_convolution_0|WEIGHT"
    )
    assert found.shape == (1, 8, 1, 1)
    assert found.op.channel_axis == 1


def test_shared_layer() -> None:
    """One parameter used by several calls has one quantizer that runs at all of them."""
    builder = Builder()
    x = builder.op("convolution", builder.input(), parameter="conv.weight")
    builder.output(builder.op("convolution", builder.op("relu", x), parameter="conv.weight"))
    found = named(place(builder.graph), "convolution_0|WEIGHT")
    assert [str(p) for p in found.points] == [
        "Net/convolution_0|WEIGHT", "Net/convolution_1|WEIGHT"
    ]  # fmt: skip
    assert potential_weights(builder.graph) == 1


def test_computed_weights_are_not_shared() -> None:
    """Tensors computed from one parameter at two operations have quantizers of their own."""
    builder = Builder()
    x = builder.input()
    computed = (Parameter("w", 1, (8, 8, 3, 3), direct=False),)
    for _ in range(2):
        x = builder.op("convolution", x, parameters=computed)
    builder.output(x)
    assert sum(item.op.weight for item in place(builder.graph)) == 2


def test_conflicting_overrides_split_a_shared_weight() -> None:
    """Where uses of one parameter allow no common scheme each has its own quantizer."""
    builder = Builder()
    x = builder.op("linear", builder.input(), parameter="w")
    builder.output(builder.op("linear", x, parameter="w"))
    overrides = group(weights={"Net/linear_1": group(mode="asymmetric")})
    layout = place(builder.graph, scope_overrides=overrides)
    assert [item.op.mode for item in layout if item.op.weight] == ["symmetric", "asymmetric"]


def test_custom_weights() -> None:
    """A matmul with a trained second operand and an LSTM have their matrices quantized."""
    builder = Builder()
    x = builder.op("matmul", builder.input(), parameters=(Parameter("w", 1, (8, 8)),))
    matrices = (
        Parameter("w_x", 3, (32, 8)),
        Parameter("w_h", 4, (32, 8)),
        Parameter("b", 5, (32,)),
    )
    builder.output(builder.op("lstm", x, parameters=matrices))
    found = [item.name for item in place(builder.graph) if item.op.weight]
    assert found == ["Net/matmul_0|WEIGHT", "Net/lstm_0|WEIGHT3", "Net/lstm_0|WEIGHT4"]
    assert potential_weights(builder.graph) == 3


def embedded(*readers: str) -> Any:
    builder = Builder()
    looked_up = builder.op("embedding", builder.input("integer"))
    for reader in readers:
        builder.output(builder.op(reader, looked_up))
    return builder.graph


def test_embedding_stands_for_activation() -> None:
    """What an embedding feeds to a layer is quantized once, in its weight, per tensor."""
    layout = place(embedded("linear"))
    assert [item.name for item in layout] == ["Net/embedding_0|WEIGHT", "Net/linear_0|WEIGHT"]
    op = named(layout, "embedding_0|WEIGHT").op
    assert (op.per_channel, op.half_range, op.narrow_range, op.signed) == (False, False, True, True)


def test_embedding_of_another_mode() -> None:
    """If weight and activation have no scheme in common the activation keeps its quantizer."""
    layout = place(embedded("linear"), preset="mixed")
    assert "Net/embedding_0|OUTPUT" in [item.name for item in layout]
    assert named(layout, "embedding_0|WEIGHT").op.per_channel


def test_embedding_without_quantized_reader() -> None:
    """An embedding that nothing quantized reads has one range per row."""
    op = named(place(embedded("softmax")), "embedding_0|WEIGHT").op
    assert (op.per_channel, op.channel_axis) == (True, 0)


def test_ignored_embedding() -> None:
    """With the embedding ignored its reader has an activation quantizer."""
    layout = place(embedded("linear"), ignored_scopes=["Net/embedding_0"])
    assert "Net/embedding_0|OUTPUT" in [item.name for item in layout]


def test_unified_embeddings() -> None:
    """Embeddings that meet in a concat before a layer share one range."""
    builder = Builder()
    parts = [builder.op("embedding", builder.input("integer")) for _ in range(2)]
    builder.output(builder.op("linear", builder.op("concat", *parts)))
    found = named(place(builder.graph), "embedding_0|WEIGHT")
    assert [point.kind for point in found.points] == ["weight", "weight"]
    assert found.op.weight
    assert found.shape == (1,)


def test_tied_embedding() -> None:
    """An embedding tied to the last layer has one quantizer for both uses."""
    builder = Builder()
    x = builder.op("embedding", builder.input("integer"), parameter="table")
    builder.output(builder.op("linear", builder.op("layer_norm", x), parameter="table"))
    assert len(named(place(builder.graph), "embedding_0|WEIGHT").points) == 2


def test_frozen_layers(caplog: pytest.LogCaptureFixture) -> None:
    """Frozen weights are quantized to 8 bits with a warning, and refused at other widths."""
    builder = Builder()
    builder.output(builder.op("linear", builder.input(), parameter="head.weight", trainable=False))
    with caplog.at_level(logging.WARNING, logger="nncf"):
        place(builder.graph)
    assert "head.weight" in caplog.text
    with pytest.raises(ModelError, match=r"head\.weight"):
        place(builder.graph, "TRIAL", weights=group(bits=4))
    ignored = ["Net/linear_0"]
    assert len(place(builder.graph, "TRIAL", weights=group(bits=4), ignored_scopes=ignored)) == 0


def test_unified_ops_must_be_quantized() -> None:
    """Unifying an operation without quantized inputs is an error that says why."""
    options = group(unified_scale_ops=[["Net/relu_0", "Net/convolution_1"]])
    with pytest.raises(ConfigError, match="Net/relu_0 has no quantizer"):
        place(chain(*NET), activations=options)


def test_common_schemes() -> None:
    """Merging ranks by the sum of positions, then bits, granularity and symmetry."""
    symmetric, asymmetric, channel = Scheme(), Scheme(mode="asymmetric"), Scheme(per_channel=True)
    first, second = (channel, symmetric, asymmetric), (asymmetric, symmetric)
    assert common_schemes((first, second)) == (symmetric, asymmetric)
    assert common_schemes(((channel,), second)) == ()
    signed = Scheme(signed=True)
    assert common_schemes(((symmetric,), (signed,))) == (signed,)
    assert common_schemes(((Scheme(signed=False),), (signed,))) == ()


def test_layout_round_trip_and_table() -> None:
    """A layout survives JSON, and its table names every quantizer with the reason."""
    layout = place(chain(*NET))
    state = json.loads(json.dumps(layout.to_state()))
    again = Layout.from_state(state, lambda _, op: Scheme.from_state(op))
    assert again == layout
    assert again.inserts[0].name == "/nncf_model_input_0|OUTPUT"
    table = repr(layout)
    assert all(item.name in table and item.reason in table for item in layout)
    assert all(skip.reason in table for skip in layout.skipped)
