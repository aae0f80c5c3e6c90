# SPDX-License-Identifier: Apache-2.0
"""What capture knows of parameters and of tensors changed in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nncf.graph.graph import Graph, Parameter
from tests.torch.graphs import find, graph_of, sources, take


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.sigmoid(x)).transpose(0, 1)


def only_parameter(graph: Graph, name: str) -> Parameter:
    (found,) = find(graph, name).parameters
    return found


# in-place changes and views -----------------------------------------------------------------


def test_in_place_operation_is_seen_by_all_readers() -> None:
    """Who reads the old object of a tensor changed in place reads the changed values."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(x)
        z = F.relu(y, inplace=True)
        return y + z

    graph = graph_of(forward)
    edges = graph.inputs_of(find(graph, "__add___0").key)
    assert [edge.source.rpartition("/")[2] for edge in edges] == ["relu_0", "relu_0"]
    assert [edge.aliased for edge in edges] == [True, False]


def test_functions_that_return_their_input_do_not_change_it() -> None:
    """x.to(its own type) feeds only those who use its result."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(x)
        return torch.tanh(y.to(torch.float32)) + y

    graph = graph_of(forward)
    assert sources(graph, "tanh_0") == ["to_0"]
    assert sources(graph, "__add___0") == ["tanh_0", "sigmoid_0"]
    assert not any(edge.aliased for edge in graph.edges())


@pytest.mark.parametrize("through", ["view", "setitem", "base"])
def test_change_through_a_view(through: str) -> None:
    """A change through a view, an index or the base is a change of all that show the memory."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(x)
        view = y.reshape(2, -1)
        if through == "view":
            view.mul_(2)
            return y.tanh()
        if through == "setitem":
            y[:, :1] = x[:, :1] * 3
            return view.tanh()
        y.mul_(2)
        return view.tanh()

    expected = "__setitem___0" if through == "setitem" else "__imul___0"
    assert sources(graph_of(forward), "tanh_0") == [expected]


def test_parts_of_a_tensor_are_told_apart() -> None:
    """A change of one half of a tensor does not concern who reads the other half."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        left, right = torch.sigmoid(x).chunk(2, dim=1)
        left.relu_()
        return torch.tanh(right)

    assert sources(graph_of(forward), "tanh_0") == ["chunk_0"]


def test_views_that_are_written_to_are_unreached() -> None:
    """Nothing may be inserted between a tensor and a view through which it is changed."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(x)
        y[:, :2].mul_(2)
        return y

    graph = graph_of(forward)
    assert "changed in place" in str(find(graph, "__getitem___0").unreached)
    assert find(graph, "sigmoid_0").unreached is None


def test_views_whose_origin_nobody_reads_again_are_reached() -> None:
    """A change of a view matters only to those who read the tensor behind it afterwards."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(x)[:, :2]
        y += 1
        return torch.tanh(y)

    assert find(graph_of(forward), "__getitem___0").unreached is None


def test_parts_filled_one_by_one() -> None:
    """A constant that is filled through its parts comes from what filled it."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        batch = x.new_zeros(2, 6)
        for row, values in zip(batch, torch.relu(x)[:, 0, 0], strict=True):
            row.copy_(values)
        return torch.tanh(batch)

    assert sources(graph_of(forward), "tanh_0") == ["copy__1"]


def test_output_argument() -> None:
    """What is written to out= comes from the operation that wrote it."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        buffer = torch.empty_like(x)
        torch.mul(x, 2, out=buffer)
        return buffer.tanh()

    assert sources(graph_of(forward), "tanh_0") == ["mul_0"]


# parameters ---------------------------------------------------------------------------------


class Own(nn.Module):
    """A module whose forward is given, with a parameter and a buffer of its own."""

    def __init__(self, forward: Any, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.register_buffer("table", torch.randn(shape))
        self.run = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


@pytest.mark.parametrize(
    ("forward", "shape", "port", "axis"),
    [
        (lambda m, x: F.linear(x, m.weight), (5, 4), 1, 0),
        (lambda m, x: F.linear(weight=m.weight, input=x), (5, 4), 1, 0),
        (lambda m, x: x @ m.weight, (4, 5), 1, 1),
        (lambda m, x: m.weight @ x.mT, (5, 4), 0, 0),
        (lambda m, x: torch.addmm(x[:, :1], x, m.weight), (4, 5), 2, 1),
        (lambda m, x: x.expand(3, 2, 4).bmm(m.weight), (3, 4, 5), 1, 2),
        (lambda m, x: F.conv1d(x[:, :, None], m.weight), (5, 4, 1), 1, 0),
        (lambda m, x: F.conv_transpose1d(x[:, :, None], m.weight), (4, 5, 1), 1, 1),
        (lambda m, x: F.embedding(x.long(), m.weight), (5, 4), 1, 0),
        (lambda m, x: m.weight[x.long()], (5, 4), 0, 0),
    ],
)
def test_weights(forward: Any, shape: tuple[int, ...], port: int, axis: int) -> None:
    """Weights are found by where they enter, not by the class of the module."""
    graph = take(Own(forward, *shape), torch.rand(2, 4)).graph
    (weight,) = [op.weight for op in graph.operations() if op.weight is not None]
    assert (weight.name, weight.port, weight.channel_axis) == ("weight", port, axis)
    assert weight.direct


@pytest.mark.parametrize(
    "compute",
    [
        lambda m: m.weight - m.weight.mean(1, keepdim=True),
        lambda m: m.weight.data,
        lambda m: m.weight.half().float(),
        lambda m: m.weight * m.table,
        lambda m: scripted(m.weight),
    ],
    ids=["standardised", "data", "cast", "masked", "scripted"],
)
def test_computed_weights(compute: Any) -> None:
    """A weight computed from a parameter belongs to the parameter, but is not it."""
    model = Own(lambda m, x: F.linear(x, compute(m)), 4, 4)
    taken = take(model, torch.rand(2, 4))
    parameter = only_parameter(taken.graph, "linear_0")
    assert (parameter.name, parameter.direct) == ("weight", False)
    assert taken.unused == ()


@pytest.mark.parametrize(
    "weight", [lambda m: m.table, lambda m: torch.ones(4, 4)], ids=["buffer", "tensor"]
)
def test_weights_that_are_no_parameters(weight: Any) -> None:
    """A layer whose weight is a buffer or a plain tensor is left alone, with a reason."""
    graph = take(Own(lambda m, x: F.linear(x, weight(m)), 4, 4), torch.rand(2, 4)).graph
    assert "not a parameter" in str(find(graph, "linear_0").unreached)


def test_weights_made_of_activations() -> None:
    """A convolution whose kernel is computed from the input has two activations."""
    graph = graph_of(lambda x: F.conv2d(x, torch.tanh(x)[:, :, :3, :3]))
    assert sources(graph, "conv2d_0") == ["nncf_model_input_0", "__getitem___0"]
    assert find(graph, "conv2d_0").unreached is None


def test_frozen_and_unused_parameters() -> None:
    """Frozen parameters are marked; those that only training uses are listed."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.extra = nn.Linear(4, 4)
            self.body.weight.requires_grad = False

        def forward(self, x: torch.Tensor) -> Any:
            x = self.body(x)
            return (x, self.extra(x)) if self.training else x

    model = Auxiliary().train()
    taken = take(model, torch.rand(2, 4))
    weight = find(taken.graph, "linear_0").weight
    assert weight is not None
    assert not weight.trainable
    assert taken.unused == ("extra.weight", "extra.bias")
    assert model.training
