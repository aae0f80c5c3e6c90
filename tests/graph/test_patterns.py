# SPDX-License-Identifier: Apache-2.0
"""Chains and composites fuse exactly where runtimes fuse them."""

from __future__ import annotations

import pytest

from nncf.graph.patterns import find_constants, fuse
from tests.graphs import Builder, chain


def chains(graph) -> set[tuple[str, ...]]:
    fusion = fuse(graph, find_constants(graph))
    found = {tuple(part.members) for part in fusion.chain_of.values() if len(part.members) > 1}
    return {tuple(key.removeprefix("Net/") for key in part) for part in found}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("convolution batch_norm relu", "convolution_0 batch_norm_0 relu_0"),
        ("convolution relu batch_norm", "convolution_0 relu_0 batch_norm_0"),
        ("linear gelu", "linear_0 gelu_0"),
        ("convolution add relu", "convolution_0 add_0 relu_0"),
        ("matmul divide add softmax", "matmul_0 divide_0 add_0"),
        ("batch_norm relu linear", "batch_norm_0 relu_0"),
        ("group_norm relu", "group_norm_0 relu_0"),
        ("add relu6 divide", "add_0 relu6_0 divide_0"),
        ("convolution dropout relu", ""),
        ("layer_norm relu", ""),
        ("group_norm batch_norm", ""),
        ("relu sigmoid", ""),
        ("convolution softmax", ""),
    ],
)
def test_chains(kinds: str, expected: str) -> None:
    """Only the listed sequences become one chain."""
    graph = chain("input", *kinds.split(), "output")
    assert chains(graph) == ({tuple(expected.split())} if expected else set())


def test_branch_ends_chain() -> None:
    """A tensor that somebody else reads is not hidden inside a chain."""
    builder = Builder()
    first = builder.op("convolution", builder.input())
    builder.output(first)
    builder.op("relu", first)
    assert chains(builder.graph) == set()


def test_residual_add_joins_latest_layer() -> None:
    """An add of two layers fuses with the one that runs last."""
    builder = Builder()
    x = builder.input()
    first, second = builder.op("convolution", x), builder.op("convolution", x)
    builder.op("add", second, first)
    assert chains(builder.graph) == {("convolution_1", "add_0")}


def test_dynamic_subtract_stays_apart() -> None:
    """Subtraction of two activations is no part of a layer's chain."""
    builder = Builder()
    x = builder.input()
    builder.op("subtract", builder.op("convolution", x), x)
    assert chains(builder.graph) == set()


def test_swish_fuses_as_one_activation() -> None:
    """A swish after convolution and batch norm is the chain's activation."""
    builder = Builder()
    x = builder.chain(builder.input(), "convolution", "batch_norm")
    builder.op("multiply", x, builder.op("sigmoid", x))
    assert chains(builder.graph) == {("convolution_0", "batch_norm_0", "sigmoid_0", "multiply_0")}


def test_gelu_formula_is_one_activation() -> None:
    """GELU written out with erf fuses with the linear layer before it."""
    builder = Builder()
    x = builder.op("linear", builder.input())
    half = builder.op("multiply", x)
    builder.op("multiply", half, builder.chain(x, "divide", "erf", "add"))
    (found,) = chains(builder.graph)
    assert found[0] == "linear_0"
    assert len(found) == 6


def test_gate_is_no_composite() -> None:
    """A gate x * sigmoid(layer(x)) has a layer inside, so its parts stay apart."""
    builder = Builder()
    x = builder.op("max_pool", builder.input())
    builder.op("multiply", x, builder.chain(x, "average_pool", "convolution", "sigmoid"))
    assert chains(builder.graph) == {("convolution_0", "sigmoid_0")}


def test_composite_leaks_nothing() -> None:
    """When another operation reads a tensor inside, there is no composite."""
    builder = Builder()
    x = builder.op("max_pool", builder.input())
    gate = builder.op("sigmoid", x)
    builder.output(gate)
    builder.op("multiply", x, gate)
    assert chains(builder.graph) == set()


def test_normalisations_are_labelled() -> None:
    """A root mean square norm and an L2 norm written out are recognised as such."""
    for reduction, label in (("mean", "normalisation"), ("sum", "l2_norm")):
        builder = Builder()
        x = builder.op("max_pool", builder.input())
        last = builder.op("multiply", x, builder.chain(x, "power", reduction, "add", "sqrt"))
        assert fuse(builder.graph).label(last) == label


def test_input_normalisation() -> None:
    """(x - mean) / std right at a model input is preprocessing, elsewhere it is not."""
    assert len(fuse(chain("input", "subtract", "divide", "convolution")).preprocessing) == 2
    assert not fuse(chain("input", "max_pool", "subtract", "divide")).preprocessing
    assert not fuse(chain("input", "multiply", "convolution")).preprocessing


def test_constants() -> None:
    """Masks made of integers are constants; what an embedding looks up is not."""
    builder = Builder()
    tokens = builder.input("integer")
    mask = builder.chain(tokens, "identity", "subtract", "multiply")
    looked_up = builder.op("embedding", tokens)
    mixed = builder.op("add", looked_up, mask)
    found = find_constants(builder.graph)
    assert mask in found
    assert not {looked_up, mixed} & found
