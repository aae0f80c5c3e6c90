# SPDX-License-Identifier: Apache-2.0
"""What the configuration selects is what gets quantizers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nncf.errors import ScopeNotFound
from tests.graphs import Builder, chain
from tests.layouts import names, place, points, skips, weights


def lenet() -> Any:
    kinds = "convolution relu max_pool convolution relu max_pool reshape linear relu linear"
    return chain("input", *kinds.split(), "output")


def test_documented_ignored_scopes() -> None:
    """With RELU and a layer ignored, no relu output and nothing of that layer is quantized."""
    layout = place(lenet(), ignored=["{re}.*RELU.*", "Net/convolution_1"])
    assert names(layout) == ["/nncf_model_input_0|OUTPUT", "max_pool_1|OUTPUT"]
    assert weights(layout) == ["convolution_0|WEIGHT", "linear_0|WEIGHT", "linear_1|WEIGHT"]
    assert "ignored by the scope" in skips(layout)["convolution_1|WEIGHT"]
    assert "relu_2 is ignored" in skips(layout)["linear_1|INPUT0"]


def test_ignored_moving_operation() -> None:
    """No quantizer stands at the output of an ignored max_pool, nor moves past it."""
    graph = chain("input", "convolution", "relu", "max_pool", "reshape", "linear", "output")
    assert names(place(graph, ignored=["Net/max_pool_0"]))[1:] == ["reshape_0|OUTPUT"]
    graph = chain("input", "convolution", "relu", "max_pool", "linear", "output")
    assert names(place(graph, ignored=["Net/max_pool_0"]))[1:] == []


def test_quantize_inputs_false() -> None:
    """Model inputs stay in float on request, and the first layer says so."""
    graph = chain("input", "convolution", "relu", "convolution", "output")
    layout = place(graph, quantize_inputs=False)
    assert names(layout) == ["relu_0|OUTPUT"]
    assert "quantize_inputs is false" in skips(layout)["convolution_0|INPUT0"]


def test_quantize_outputs() -> None:
    """Model outputs have quantizers only on request."""
    graph = chain("input", "convolution", "relu", "output")
    assert names(place(graph))[1:] == []
    assert names(place(graph, quantize_outputs=True))[1:] == ["relu_0|OUTPUT"]


def test_unreached() -> None:
    """Where nothing can be inserted the reason is listed, and readers keep their quantizers."""
    builder = Builder()
    x = builder.op("lstm", builder.input(), unreached="packed sequences are opaque")
    builder.output(builder.op("linear", x))
    layout = place(builder.graph)
    assert names(layout) == ["linear_0|INPUT0"]
    assert skips(layout)["lstm_0"] == "packed sequences are opaque"


def test_target_scopes() -> None:
    """With target_scopes only those operations get quantizers; the top level's list wins."""
    layout = place(lenet(), target=["Net/linear_0"], target_scopes=["Net/convolution_0"])
    assert names(layout) == ["relu_1|OUTPUT"]
    assert weights(layout) == ["linear_0|WEIGHT"]
    assert skips(layout)["linear_1"] == "not among the target_scopes"


def test_group_scopes() -> None:
    """Scopes of a group act on that group alone."""
    group = SimpleNamespace(ignored_scopes=["Net/convolution_1"])
    assert "convolution_1|WEIGHT" not in weights(place(lenet(), weights=group))
    layout = place(lenet(), activations=group)
    assert "convolution_1|WEIGHT" in weights(layout)
    assert "relu_0|OUTPUT" not in names(layout)


def test_ignored_algorithms() -> None:
    """A module registered as ignored by quantization keeps its inputs and weight."""
    builder = Builder()
    x = builder.op("convolution", builder.input(), ignored_algorithms=frozenset(["quantization"]))
    builder.output(x)
    layout = place(builder.graph)
    assert len(layout) == 0
    assert "registered as ignored" in skips(layout)["convolution_0"]


def test_unmatched_scope() -> None:
    """An ignored scope that matches nothing is an error unless validation is off."""
    with pytest.raises(ScopeNotFound, match=r'ignored_scopes\[0\] "Net/conv9"'):
        place(lenet(), ignored=["Net/conv9"])
    assert len(place(lenet(), ignored=["Net/conv9"], validate_scopes=False)) == 8


def test_user_unified_scales() -> None:
    """Operations listed in unified_scale_ops share one quantizer for their inputs."""
    builder = Builder()
    x, y = (builder.chain(builder.input(), "convolution", "max_pool", "relu") for _ in range(2))
    builder.output(builder.op("average_pool", x))
    builder.output(builder.op("average_pool", y))
    group = SimpleNamespace(unified_scale_ops=[["Net/average_pool_0", "Net/average_pool_1"]])
    layout = place(builder.graph, activations=group)
    assert points(layout, "relu_0|OUTPUT") == ["relu_0|OUTPUT", "relu_1|OUTPUT"]
