# SPDX-License-Identifier: Apache-2.0
"""Markers of a model's author: own operations, ends of the graph, parts left alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nncf
from nncf.torch import (
    disable_tracing,
    forward_nncf_trace,
    nncf_model_input,
    nncf_model_output,
    no_nncf_trace,
    register_operator,
)
from nncf.torch.capture import capture


def compress(model: nn.Module, **creation: Any) -> tuple[Any, nn.Module]:
    config = nncf.NNCFConfig.from_dict(
        {"input_info": {"sample_size": [1, 8]}, "compression": {"algorithm": "quantization"}}
    )
    batches = [(torch.rand(4, 8), torch.zeros(4)) for _ in range(2)]
    config = nncf.register_default_init_args(config, batches)
    found: tuple[Any, nn.Module] = nncf.create_compressed_model(
        model, config, dump_graphs=False, **creation
    )
    return found


def keys(model: nn.Module) -> list[str]:
    x = torch.rand(1, 8)
    graph = capture(model, lambda m: m(x), inputs=(x,)).graph
    return [operation.key for operation in graph.operations()]


def compiled_equals(model: nn.Module, x: torch.Tensor) -> bool:
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    return torch.equal(compiled(x), model(x))


@register_operator()
def squash(x: torch.Tensor, *, gain: float = 1.0) -> torch.Tensor:
    """Three operations that shall count as one."""
    return torch.tanh(x * gain) + F.relu(x)


@register_operator("relu")
def smooth_relu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


class Squashing(nn.Module):
    def __init__(self, function: Any = squash) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.function(self.first(x))
        return F.relu(self.second(self.function(x)))


def test_registered_operator_is_one_operation() -> None:
    """A registered function appears under its name, once per call, without what is inside."""
    found = [key for key in keys(Squashing()) if "Linear" not in key and "/nncf" not in key]
    assert found == ["Squashing/squash_0", "Squashing/squash_1", "Squashing/relu_0"]


def test_registered_operator_has_the_kind_of_its_name() -> None:
    """With the name of a known operation a function counts as one of that kind."""
    x = torch.rand(1, 8)
    graph = capture(Squashing(smooth_relu), lambda m: m(x), inputs=(x,)).graph
    assert graph["Squashing/relu_0"].kind.name == "relu"


@pytest.mark.parametrize("function", [squash, smooth_relu])
def test_registered_operator_is_compressed_around(function: Any) -> None:
    """Its output is quantized, in copies, pickles and compiled models too."""
    _, model = compress(Squashing(function))
    name = "squash" if function is squash else "relu"
    assert f"Squashing/{name}_1" in model.compression.sites
    x = torch.randn(4, 8)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    assert compiled_equals(model, x)
    plain = Squashing(function)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "compression" not in k})
    assert not torch.equal(plain(x), model(x))


def test_registered_operator_outside_models_is_the_function() -> None:
    """Called by itself it is the plain function, with its name and documentation."""
    x = torch.randn(3)
    assert torch.equal(squash(x, gain=2.0), torch.tanh(2 * x) + F.relu(x))
    assert squash.__doc__ == "Three operations that shall count as one."


class Gap(nn.Module):
    """Between two layers: a function of two operations, in a context of choice."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        self.context = context
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        with self.context():
            x = torch.relu(x) @ self.first.weight
        return torch.relu(self.second(torch.relu(x)))


def test_operations_in_a_gap_are_not_seen_and_not_counted() -> None:
    """Within no_nncf_trace nothing is captured; the calls after it count from zero."""
    found = {context: keys(Gap(context)) for context in (no_nncf_trace, forward_nncf_trace)}
    assert [key for key in found[forward_nncf_trace] if "Linear" not in key] == [
        *("/nncf_model_input_0", "Gap/relu_0", "Gap/relu_1", "/nncf_model_output_0")
    ]
    assert "Gap/relu_1" in found[no_nncf_trace]
    assert not {key for keys_ in found.values() for key in keys_ if "matmul" in key}


@pytest.mark.parametrize("context", [no_nncf_trace, forward_nncf_trace])
def test_operations_in_a_gap_are_not_compressed(context: Any) -> None:
    """A product in a gap keeps its floating point operands; what follows is compressed."""
    _, model = compress(Gap(context))
    x = torch.randn(4, 8)
    seen: list[torch.Tensor] = []
    model.second.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(x)
    between = torch.relu(model.first(x)) @ model.first.weight
    site = "Linear[second]/linear_0|INPUT0" if context is no_nncf_trace else "relu_0|OUTPUT"
    quantizer = model.compression.ops[f"Gap/{site}"]
    expected = torch.relu(between)
    assert torch.equal(quantizer(seen[0]), quantizer(expected))
    assert torch.equal(seen[0], expected) is (context is no_nncf_trace)
    assert compiled_equals(model, x)


def test_results_of_a_gap_have_no_source() -> None:
    """After no_nncf_trace the graph begins anew; after forward_nncf_trace it goes on."""
    x = torch.rand(1, 8)
    graph = capture(Gap(forward_nncf_trace), lambda m: m(x), inputs=(x,)).graph
    sources = [edge.source for edge in graph.inputs_of("Gap/relu_0")]
    assert sources == ["Gap/Linear[first]/linear_0"]
    graph = capture(Gap(no_nncf_trace), lambda m: m(x), inputs=(x,)).graph
    sources = [edge.source for edge in graph.inputs_of("Gap/Linear[second]/linear_0")]
    assert sources == ["/nncf_external_0"]


def test_gap_as_decorator_and_after_an_exception() -> None:
    """The contexts decorate functions; an exception inside ends the gap."""

    @no_nncf_trace()
    def failing(x: torch.Tensor) -> torch.Tensor:
        raise KeyError(str(len(torch.relu(x))))

    class Recovering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                failing(x)
            except KeyError:
                x = torch.relu(x)
            return self.layer(x)

    assert "Recovering/relu_0" in keys(Recovering())
    assert "Recovering/relu_1" not in keys(Recovering())


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def select(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x) * x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.select(self.layer(x))


@pytest.mark.parametrize("by", ["class", "object"])
def test_disable_tracing_of_a_method(by: str) -> None:
    """A method named from outside runs unseen from then on, for all objects of the class."""

    class Mine(Detector):
        def select(self, x: torch.Tensor) -> torch.Tensor:
            return super().select(x)

    if by == "class":
        globals()["Mine"] = Mine
        Mine.select.__qualname__ = "Mine.select"
    assert any("sigmoid" in key for key in keys(Mine()))
    disable_tracing(Mine.select if by == "class" else Mine().select)
    globals().pop("Mine", None)
    assert not any("sigmoid" in key for key in keys(Mine()))
    assert any("sigmoid" in key for key in keys(Detector()))
    x = torch.randn(2, 8)
    assert torch.equal(Mine().select(x), torch.sigmoid(x) * x)


def test_disable_tracing_as_decorator() -> None:
    """In a class body it returns the method that runs unseen."""

    class Decorated(Detector):
        @disable_tracing
        def select(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(x)

    assert keys(Decorated()) == [
        "/nncf_model_input_0",
        "Decorated/Linear[layer]/linear_0",
    ]


def test_inputs_and_outputs_are_marked() -> None:
    """dummy_forward_fn marks inputs and outputs; only those are ends of the graph."""
    x = torch.rand(1, 8)

    def forward(model: nn.Module) -> torch.Tensor:
        y = model.first(nncf_model_input(x) * 1.0)
        nncf_model_output(y)
        return model(x)

    graph = capture(Squashing(), forward).graph
    assert [op.key for op in graph.operations("input")] == ["/nncf_model_input_0"]
    assert [op.key for op in graph.operations("output")] == ["/nncf_model_output_0"]
    assert graph.inputs_of("/nncf_model_output_0")[0].source == "Squashing/Linear[first]/linear_0"


def test_dummy_forward_and_wrappers_of_create_compressed_model() -> None:
    """The functions given to create_compressed_model decide what is captured as an end."""
    x = torch.rand(1, 8)
    _, model = compress(Squashing(), dummy_forward_fn=lambda m: m(nncf_model_input(x)))
    assert "/nncf_model_input_0|OUTPUT" in model.compression.ops

    def wrap(args: Any, kwargs: Any) -> Any:
        return (nncf_model_input(args[0]),), kwargs

    _, other = compress(Squashing(), wrap_inputs_fn=wrap, wrap_outputs_fn=nncf_model_output)
    assert other.compression.layout == model.compression.layout


def test_markers_do_nothing_elsewhere() -> None:
    """Outside a capture they return what they got."""
    x = torch.rand(2)
    assert nncf_model_input(x) is x
    assert nncf_model_output(x) is x
    with no_nncf_trace(), forward_nncf_trace():
        assert torch.equal(x + 0, x)
