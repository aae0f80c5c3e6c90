# SPDX-License-Identifier: Apache-2.0
"""What capture writes down of small models, each built around one difficulty."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nncf.torch import hooks
from tests.torch.graphs import find, graph_of, names, sources, take

# addresses ----------------------------------------------------------------------------------


def test_addresses_of_layers_and_functions() -> None:
    """Operations are named after the modules that run, the function, and the call's number."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.conv(x)) + F.relu(x)

    model = nn.Sequential(Inner(), nn.Sequential(nn.ReLU()))
    graph = take(model, torch.rand(1, 3, 4, 4)).graph
    assert [operation.key for operation in graph.operations()] == [
        "/nncf_model_input_0",
        "Sequential/Inner[0]/Conv2d[conv]/conv2d_0",
        "Sequential/Inner[0]/relu_0",
        "Sequential/Inner[0]/relu_1",
        "Sequential/Inner[0]/__add___0",
        "Sequential/Sequential[1]/ReLU[0]/relu_0",
        "/nncf_model_output_0",
    ]
    conv = find(graph, "conv2d_0")
    assert (conv.layer, conv.layer_class) == ("0.conv", "Conv2d")
    assert conv.weight is not None
    assert conv.weight.name == "0.conv.weight"


def test_shared_module() -> None:
    """Each call of a shared module is an operation of its own, with the same parameter."""
    layer = nn.Linear(4, 4)
    graph = take(nn.Sequential(layer, nn.ReLU(), layer), torch.rand(2, 4)).graph
    linears = list(graph.operations("linear"))
    assert [op.key for op in linears] == [
        "Sequential/Linear[0]/linear_0",
        "Sequential/Linear[0]/linear_1",
    ]
    assert {op.weight.name for op in linears if op.weight} == {"0.weight"}


def test_operators_and_their_methods() -> None:
    """Writing x + y, x.add(y), torch.add or their in-place forms is adding."""
    kinds = [
        operation.kind.name
        for function in (
            lambda x: x + x,
            lambda x: x.add(x),
            lambda x: torch.add(x, x),
            lambda x: 1 + x,
            lambda x: x.clone().add_(1),
            lambda x: x.clone().__iadd__(1),
        )
        for operation in graph_of(function).operations("add")
    ]
    assert kinds == ["add"] * 6


def test_operators_of_libraries() -> None:
    """Functions under torch.ops have the kind of the function that they are."""
    graph = graph_of(lambda x: torch.ops.aten.relu.default(torch.ops.aten.sigmoid(x)))
    assert [op.kind.name for op in graph.operations()][1:3] == ["sigmoid", "relu"]


# inputs and outputs -------------------------------------------------------------------------


@dataclass
class Record:
    image: torch.Tensor
    scale: torch.Tensor


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.rand(2), "b": [torch.rand(2)]},
        Pair(torch.rand(2), torch.rand(2)),
        Record(torch.rand(2), torch.rand(2)),
        [(torch.rand(2),), (torch.rand(2),)],
    ],
    ids=["dict", "named tuple", "dataclass", "nested"],
)
def test_nested_inputs_and_outputs(value: Any) -> None:
    """Tensors in dicts, tuples and dataclasses are inputs and outputs, in their order."""

    def forward(given: Any) -> Any:
        if isinstance(given, dict):
            return {"out": given["a"] + 1, "more": given["b"][0] * 2}
        if isinstance(given, Record):
            return Record(given.image + 1, given.scale * 2)
        first, second = (item[0] if isinstance(item, tuple) else item for item in given)
        return Pair(first + 1, second * 2)

    graph = graph_of(forward, value)
    assert sources(graph, "__add___0") == ["nncf_model_input_0"]
    assert sources(graph, "__mul___0") == ["nncf_model_input_1"]
    assert sources(graph, "/nncf_model_output_0") == ["__add___0"]
    assert sources(graph, "/nncf_model_output_1") == ["__mul___0"]


def test_state_in_objects() -> None:
    """Tensors that pass through an object of the user, as caches do, keep their origin."""

    class Cache:
        def __init__(self) -> None:
            self.keys: list[torch.Tensor] = []

        def update(self, key: torch.Tensor) -> torch.Tensor:
            self.keys.append(key)
            return torch.cat(self.keys)

    def forward(x: torch.Tensor) -> torch.Tensor:
        cache = Cache()
        cache.update(x * 2)
        return cache.update(x + 1).tanh()

    assert sources(graph_of(forward), "cat_1") == ["__mul___0", "__add___0"]


# calls that cannot be seen ------------------------------------------------------------------


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.sigmoid(x)).transpose(0, 1)


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def test_scripted_function() -> None:
    """What a scripted function makes is one unreached operation, connected to its inputs."""
    graph = graph_of(lambda x: torch.tanh(scripted(torch.relu(x))))
    assert names(graph)[1:4] == ["relu_0", "nncf_unseen_0", "tanh_0"]
    assert sources(graph, "nncf_unseen_0") == ["relu_0"]
    assert sources(graph, "tanh_0") == ["nncf_unseen_0"]
    assert "scripted" in str(find(graph, "nncf_unseen_0").unreached)


def test_scripted_module() -> None:
    """A scripted submodule is unreached; its weight is not lost, what follows is captured."""
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 2))
    taken = take(model, torch.rand(2, 4))
    assert len(list(taken.graph.operations("linear"))) == 2
    unseen = find(taken.graph, "nncf_unseen_0")
    assert "1.weight" in [parameter.name for parameter in unseen.parameters]
    assert sources(taken.graph, "Linear[2]/linear_0") == ["nncf_unseen_0"]


def test_custom_gradient() -> None:
    """Operations inside a custom autograd function are captured."""
    graph = graph_of(lambda x: torch.tanh(Doubling.apply(x)))
    assert sources(graph, "tanh_0") == ["__mul___0"]


def test_memory_shared_with_numpy() -> None:
    """A tensor that shares memory with a known one, through NumPy, comes from its source."""
    graph = graph_of(lambda x: torch.tanh(torch.from_numpy(torch.relu(x).numpy())))
    assert sources(graph, "tanh_0") == ["relu_0"]


# constants and masks ------------------------------------------------------------------------


def test_constants() -> None:
    """Tensors made on the way, or held outside of buffers, are constants."""
    table = torch.rand(6)
    graph = graph_of(lambda x: x * torch.arange(6.0) + table)
    assert sources(graph, "__mul___0") == ["nncf_model_input_0", "nncf_external_0"]
    assert sources(graph, "__add___0") == ["__mul___0", "nncf_external_1"]
    assert len(list(graph.operations("constant"))) == 2


def test_only_the_shape_is_taken() -> None:
    """What is made with the shape of another tensor does not come from it."""
    graph = graph_of(lambda x: x + torch.zeros_like(torch.relu(x)) + x.new_ones(6))
    assert sources(graph, "__add___0") == ["nncf_model_input_0", "nncf_external_0"]


@pytest.mark.parametrize(
    "mask",
    [
        lambda x: (x < 0).float() * torch.finfo(torch.float32).min,
        lambda x: torch.zeros_like(x).masked_fill(x < 0, -torch.inf),
        lambda x: torch.where(x > 2, x.new_tensor(-1e9), 0.0),
        lambda x: torch.full((6, 6), -torch.inf).triu(1),
    ],
    ids=["product", "fill", "where", "constant"],
)
def test_masks_are_no_activations(mask: Any) -> None:
    """What holds, or could hold, minus infinity has edges that nothing is inserted at."""
    graph = graph_of(lambda x: torch.softmax(torch.tanh(x) + mask(x), dim=-1))
    edges = graph.inputs_of(find(graph, "__add___0").key)
    assert [edge.dtype for edge in edges] == ["float", "other"]
    assert graph.inputs_of(find(graph, "softmax_0").key)[0].dtype == "other"


# what capture leaves behind -----------------------------------------------------------------


def test_nothing_is_left_behind() -> None:
    """Modes, hooks, buffers, gradients and random numbers are as before."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model.train()
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    take(model, torch.rand(2, 3, 5, 5))
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_numbers_are_put_back() -> None:
    """A forward that draws random numbers does not move the generator."""
    x, before = torch.rand(2), torch.get_rng_state()
    graph_of(lambda x: x + torch.randn_like(x), x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_no_mode(error: type[BaseException]) -> None:
    """After an exception or Ctrl-C in forward neither modes nor hooks are left."""

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.ReLU())
            self.inner.register_forward_hook(self.fail)

        def fail(self, *_: Any) -> None:
            raise error

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = Failing()
    with pytest.raises(error):
        take(model, torch.rand(2))
    assert hooks.active_mode() is None
    assert torch.overrides._get_current_function_mode() is None
    assert len(model.inner._forward_hooks) == 1
    assert not model._forward_pre_hooks


def test_deep_nesting() -> None:
    """Fifty levels of modules are no difficulty."""
    model: nn.Module = nn.ReLU()
    for _ in range(50):
        model = nn.Sequential(model)
    graph = take(model, torch.rand(2)).graph
    assert names(graph)[1] == "relu_0"
    assert len(find(graph, "relu_0").address.scope) == 51


def test_cost_is_linear() -> None:
    """Four times the operations take about four times as long to capture."""

    def seconds(count: int) -> float:
        model = nn.Sequential(*(nn.Identity() if i % 2 else nn.ReLU() for i in range(2 * count)))
        x = torch.rand(4)
        found = []
        for _ in range(3):
            start = time.perf_counter()
            take(model, x)
            found.append(time.perf_counter() - start)
        return min(found)

    assert seconds(1600) < 8 * seconds(400)
