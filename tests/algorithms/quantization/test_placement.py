# SPDX-License-Identifier: Apache-2.0
"""Activation quantizers stand where the rules of placement put them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.graphs import Builder, chain
from tests.layouts import names, place, points, skips


def lenet() -> Any:
    kinds = "convolution relu max_pool convolution relu max_pool reshape linear relu linear"
    return chain("input", *kinds.split(), "output")


def test_lenet() -> None:
    """Quantizers move up to the producing activation, and the layout says past what."""
    layout = place(lenet())
    expected = ["/nncf_model_input_0|OUTPUT", "relu_0|OUTPUT", "relu_1|OUTPUT", "relu_2|OUTPUT"]
    assert names(layout) == expected
    reasons = {item.name: item.reason for item in layout}
    assert reasons["Net/relu_0|OUTPUT"] == (
        "input of convolution Net/convolution_1, moved up through Net/max_pool_0"
    )
    assert points(layout, "/nncf_model_input_0|OUTPUT") == ["convolution_0|INPUT0"]


def test_every_operation_is_explained() -> None:
    """Each operation has a point of its own, a skip with a reason, or quantized inputs."""
    layout = place(chain("input", "convolution", "relu", "softmax", "unknown", "mean", "output"))
    owned = {point.address for item in layout for point in item.points}
    assert owned | {f"Net/{key}" for key in skips(layout)} == {
        "Net/convolution_0", "Net/relu_0", "Net/softmax_0", "Net/unknown_0"
    }  # fmt: skip
    assert [item.reason for item in layout][-1] == "input of mean Net/mean_0"
    assert "nncf does not know what unknown computes" in skips(layout)["unknown_0"]
    assert "softmax is not quantized on target device ANY" in skips(layout)["softmax_0"]
    assert "computed together with" in skips(layout)["relu_0"]


def test_residual_block() -> None:
    """The shortcut shares the quantizer of the block's first layer; both inputs of add have one."""
    builder = Builder()
    x = builder.chain(builder.input(), "convolution", "batch_norm", "relu")
    y = builder.chain(x, "convolution", "batch_norm", "relu", "convolution", "batch_norm")
    builder.output(builder.op("relu", builder.op("add", y, x)))
    layout = place(builder.graph)
    assert names(layout)[1:] == ["relu_0|OUTPUT", "relu_1|OUTPUT", "batch_norm_2|OUTPUT"]


def inverted_residual() -> Any:
    builder = Builder()
    x = builder.chain(builder.input(), "convolution", "batch_norm")
    y = builder.chain(x, "convolution", "batch_norm", "relu6")
    y = builder.chain(
        y, "depthwise_convolution", "batch_norm", "relu6", "convolution", "batch_norm"
    )
    builder.output(builder.op("add", x, y))
    return builder.graph


def test_inverted_residual() -> None:
    """Each of the three layers and the add have quantized inputs; the block's input has one."""
    expected = ["batch_norm_0|OUTPUT", "relu6_0|OUTPUT", "relu6_1|OUTPUT", "batch_norm_3|OUTPUT"]
    assert names(place(inverted_residual()))[1:] == expected


@pytest.mark.parametrize(("device", "per_channel"), [("ANY", False), ("CPU", True), ("GPU", True)])
def test_depthwise_activations(device: str, *, per_channel: bool) -> None:
    """Depthwise inputs have a range per channel on CPU and GPU, per tensor for any device."""
    layout = place(inverted_residual(), device)
    (found,) = [item for item in layout if item.name == "Net/relu6_0|OUTPUT"]
    assert found.op.per_channel is per_channel
    assert found.shape == ((1, 8, 1, 1) if per_channel else (1,))
    assert found.op.channel_axis == (1 if per_channel else None)


def test_per_channel_does_not_move_past_reshape() -> None:
    """A range per channel stays below an operation that rearranges axes."""
    graph = chain("input", "convolution", "transpose", "depthwise_convolution", "output")
    assert names(place(graph, "GPU"))[1:] == ["transpose_0|OUTPUT"]
    graph = chain("input", "convolution", "max_pool", "depthwise_convolution", "output")
    assert names(place(graph, "GPU"))[1:] == ["convolution_0|OUTPUT"]


def test_branches_of_different_schemes() -> None:
    """Readers without a common scheme keep quantizers of their own; else the common one is used."""
    builder = Builder()
    x = builder.op("relu", builder.op("convolution", builder.input()))
    builder.output(builder.op("convolution", x))
    builder.output(builder.op("depthwise_convolution", x))
    expected = ["convolution_1|INPUT0", "depthwise_convolution_0|INPUT0"]
    assert names(place(builder.graph, "GPU"))[1:] == expected
    layout = place(builder.graph, "CPU")
    assert names(layout)[1:] == ["relu_0|OUTPUT"]
    assert [item.op.per_channel for item in layout if item.name == "Net/relu_0|OUTPUT"] == [False]


@pytest.mark.parametrize("reader", ["softmax", "output"])
def test_branch_to_float_reader(reader: str) -> None:
    """Where one reader needs floating point, the others share a quantizer at their inputs."""
    builder = Builder()
    x = builder.op("relu", builder.op("convolution", builder.input()))
    first, second = builder.op("convolution", x), builder.op("convolution", x)
    builder.output(x) if reader == "output" else builder.op("softmax", x)
    builder.output(builder.op("max_pool", first))
    builder.output(second)
    layout = place(builder.graph)
    assert names(layout)[1:] == ["convolution_1|INPUT0"]
    assert points(layout, "convolution_1|INPUT0") == [
        "convolution_1|INPUT0",
        "convolution_2|INPUT0",
    ]


def test_partial_readers_past_moving_operations() -> None:
    """Beside a float reader, a quantizer moves to the input of the operation it came past."""
    builder = Builder()
    x = builder.op("relu", builder.op("convolution", builder.input()))
    builder.output(builder.chain(x, "max_pool", "convolution"))
    builder.output(x)
    assert names(place(builder.graph))[1:] == ["max_pool_0|INPUT0"]


def test_concat_unifies_before_layer() -> None:
    """Inputs of a concat that feeds a convolution share one quantizer at their producers."""
    builder = Builder()
    x = builder.op("relu", builder.op("convolution", builder.input()))
    branches = [builder.chain(x, "convolution", "relu") for _ in range(3)]
    builder.output(builder.chain(builder.op("concat", *branches), "max_pool", "convolution"))
    layout = place(builder.graph)
    assert names(layout)[1:] == ["relu_0|OUTPUT", "relu_1|OUTPUT"]
    assert points(layout, "relu_1|OUTPUT") == ["relu_1|OUTPUT", "relu_2|OUTPUT", "relu_3|OUTPUT"]


def test_concat_without_layer() -> None:
    """Inputs of a concat that feeds no layer are quantized each with a range of its own."""
    builder = Builder()
    x = builder.input()
    branches = [builder.chain(x, "convolution", "relu") for _ in range(2)]
    builder.output(builder.op("average_pool", builder.op("concat", *branches)))
    assert names(place(builder.graph))[1:] == ["relu_0|OUTPUT", "relu_1|OUTPUT"]


def test_concat_with_parameter() -> None:
    """A concat that adds a trained token is quantized at its output, so that nothing escapes."""
    builder = Builder()
    x = builder.op("convolution", builder.input())
    joined = builder.op("concat", x, ports=[1])
    builder.output(builder.op("linear", joined))
    assert names(place(builder.graph))[1:] == ["concat_0|OUTPUT"]


def test_densenet() -> None:
    """Features that many concats read have one quantizer each, not one range for all."""
    builder = Builder()
    features = [builder.op("convolution", builder.input())]
    for _ in range(3):
        joined = builder.op("concat", *features)
        features.append(builder.chain(joined, "batch_norm", "relu", "convolution"))
    builder.output(builder.chain(builder.op("concat", *features), "batch_norm", "relu", "mean"))
    layout = place(builder.graph)
    produced = [name for name in names(layout) if name.startswith("convolution")]
    assert produced == [f"convolution_{number}|OUTPUT" for number in range(4)]
    assert all(len(item.points) == 1 for item in layout)


def test_unet() -> None:
    """A skip connection shares its quantizer with the way down, and its range with the way up."""
    builder = Builder()
    skip = builder.chain(builder.input(), "convolution", "batch_norm", "relu")
    deep = builder.chain(skip, "max_pool", "convolution", "relu", "transposed_convolution")
    builder.output(builder.chain(builder.op("concat", skip, deep), "convolution", "relu"))
    layout = place(builder.graph)
    both = ["relu_0|OUTPUT", "transposed_convolution_0|OUTPUT"]
    assert names(layout)[1:] == ["relu_0|OUTPUT", "relu_1|OUTPUT"]
    assert points(layout, "relu_0|OUTPUT") == both


def test_squeeze_and_excite() -> None:
    """Both inputs of the gate's product are quantized; pooling shares with the main path."""
    builder = Builder()
    x = builder.chain(builder.input(), "convolution", "batch_norm", "silu")
    gate = builder.chain(x, "average_pool", "convolution", "relu", "convolution", "sigmoid")
    builder.output(builder.op("convolution", builder.op("multiply", x, gate)))
    expected = ["silu_0", "average_pool_0", "relu_0", "sigmoid_0", "multiply_0"]
    assert names(place(builder.graph))[1:] == [f"{name}|OUTPUT" for name in expected]


def transformer(*, fused: bool = False) -> Any:
    builder = Builder()
    x = builder.op("layer_norm", builder.input(shape=(1, 10, 8)))
    q, k, v = (builder.chain(x, "linear", "reshape", "transpose") for _ in range(3))
    if fused:
        mixed = builder.op("attention", q, k, v)
    else:
        scores = builder.chain(builder.op("matmul", q, k), "divide", "softmax", "dropout")
        mixed = builder.op("matmul", scores, v)
    y = builder.chain(mixed, "transpose", "reshape", "linear", "dropout")
    y = builder.op("layer_norm", builder.op("add", y, x))
    builder.output(builder.chain(y, "linear", "gelu", "linear"))
    return builder.graph


def test_transformer_block() -> None:
    """Projections, scores and attention weights are quantized; nothing before the softmax is."""
    expected = ["layer_norm_0", "linear_0", "linear_1", "linear_2", "softmax_0", "matmul_1"]
    expected += ["linear_3", "add_0", "layer_norm_1", "gelu_0"]
    assert names(place(transformer()))[1:] == [f"{name}|OUTPUT" for name in expected]


def test_fused_attention() -> None:
    """A fused attention call has its query, key and value quantized."""
    found = names(place(transformer(fused=True)))
    assert {"linear_0|OUTPUT", "linear_1|OUTPUT", "linear_2|OUTPUT"} <= set(found)


def test_attention_mask_is_left_alone() -> None:
    """A mask computed from integers is added without a quantizer."""
    builder = Builder()
    mask = builder.chain(builder.input("integer"), "identity", "subtract", "multiply")
    x = builder.op("relu", builder.input())
    builder.output(builder.op("add", x, mask))
    assert names(place(builder.graph)) == ["relu_0|OUTPUT"]


def test_swish_is_not_cut() -> None:
    """A swish written out has no quantizer inside."""
    builder = Builder()
    x = builder.chain(builder.input(), "convolution", "batch_norm")
    x = builder.op("multiply", x, builder.op("sigmoid", x))
    builder.output(builder.op("convolution", x))
    assert names(place(builder.graph))[1:] == ["multiply_0|OUTPUT"]


def test_input_preprocessing() -> None:
    """The quantizer of a model input stands after its normalisation."""
    layout = place(chain("input", "subtract", "divide", "convolution", "output"))
    assert names(layout) == ["divide_0|OUTPUT"]


def test_split_outputs() -> None:
    """Quantizers of split outputs stand at their readers, or above the split if all ask."""
    builder = Builder()
    x = builder.op("split", builder.op("convolution", builder.input()))
    builder.output(builder.op("linear", (x, 0)))
    builder.output(builder.op("softmax", (x, 1)))
    assert names(place(builder.graph))[1:] == ["linear_0|INPUT0"]
    builder = Builder()
    x = builder.op("split", builder.op("convolution", builder.input()))
    builder.output(builder.op("linear", (x, 0)))
    builder.output(builder.op("linear", (x, 1)))
    assert names(place(builder.graph))[1:] == ["convolution_0|OUTPUT"]


def test_aliased_reader() -> None:
    """A tensor that is read through an object changed in place is quantized at its readers."""
    builder = Builder()
    x = builder.op("relu", builder.op("convolution", builder.input()))
    builder.output(builder.op("convolution", x))
    builder.output(builder.op("convolution", x, aliased=True))
    layout = place(builder.graph)
    expected = ["convolution_1|INPUT0", "convolution_2|INPUT0"]
    assert points(layout, "convolution_1|INPUT0") == expected


def test_model_input_with_two_readers() -> None:
    """One quantizer of a model input runs at all its readers, under the input's name."""
    builder = Builder()
    x = builder.input()
    builder.output(builder.op("add", builder.op("max_pool", builder.op("convolution", x)), x))
    layout = place(builder.graph)
    expected = ["convolution_0|INPUT0", "add_0|INPUT1"]
    assert points(layout, "/nncf_model_input_0|OUTPUT") == expected


def test_integer_edges() -> None:
    """Integer tensors have no quantizer, wherever they lead."""
    builder = Builder()
    x = builder.input("integer")
    builder.output(builder.op("add", x, builder.op("identity", x, dtype="integer")))
    layout = place(builder.graph)
    assert len(layout) == 0
    assert "none of its inputs" in skips(layout)["add_0"]


def test_vpu_unifies_elementwise_inputs() -> None:
    """On VPU the inputs of an add share one range."""
    builder = Builder()
    x, y = (builder.chain(builder.input(), "convolution", "relu") for _ in range(2))
    builder.output(builder.op("add", x, y))
    assert points(place(builder.graph, "VPU"), "relu_0|OUTPUT") == [
        "relu_0|OUTPUT",
        "relu_1|OUTPUT",
    ]
    assert len(names(place(builder.graph, "CPU"))) == len(names(place(builder.graph, "VPU"))) + 1


def test_nearest_interpolation_moves_values() -> None:
    """A quantizer moves past nearest-neighbour interpolation on GPU, not past linear."""
    for mode, expected in (("nearest", "convolution_0"), ("bilinear", "interpolate_0")):
        builder = Builder()
        x = builder.op("convolution", builder.input())
        x = builder.op("interpolate", x, attributes={"mode": mode})
        builder.output(builder.op("convolution", x))
        assert f"{expected}|OUTPUT" in names(place(builder.graph, "GPU"))
        assert ("interpolate_0|OUTPUT" in names(place(builder.graph, "GPU"))) is (mode != "nearest")


def big_graph(blocks: int) -> Any:
    builder = Builder()
    x = builder.op("convolution", builder.input())
    for number in range(blocks):
        scope = f"Block[{number}]"
        kinds = "convolution batch_norm relu max_pool convolution batch_norm"
        y = builder.chain(x, *kinds.split(), scope=scope)
        z = builder.op("concat", y, builder.op("sigmoid", x, scope=scope), scope=scope)
        x = builder.op("relu", builder.op("add", z, x, scope=scope), scope=scope)
    builder.output(x)
    return builder.graph


def test_speed() -> None:
    """Five thousand operations are planned within seconds, the same way each time."""
    graph = big_graph(500)
    assert len(graph) > 5000
    start = time.process_time()
    first = place(graph, ignored=["{re}Block.7./relu", "Net/Block[8]"])
    assert time.process_time() - start < 4
    assert repr(place(graph, ignored=["{re}Block.7./relu", "Net/Block[8]"])) == repr(first)
