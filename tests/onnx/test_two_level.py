# SPDX-License-Identifier: Apache-2.0
"""Weights as bits, switches, and which convolutions OpenVINO may run on bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from nncf.onnx.two_level import (
    SWITCH,
    mark_switches,
    signs_of,
    store_signs,
    switch_probes,
    switches,
    use_binary_convolutions,
)
from nncf.onnx.write import clean, serialized

RANDOM = np.random.default_rng(0)


def two_valued(*shape: int) -> np.ndarray:
    magnitude = RANDOM.uniform(0.1, 1, (shape[0], *(1 for _ in shape[1:])))
    return (np.where(RANDOM.random(shape) < 0.5, -1, 1) * magnitude).astype(np.float32)


def model(weight: np.ndarray, *, groups: int = 1, reader: str = "") -> ir.Model:
    """Return x → relu → switch → convolution → y; ``reader`` is another one of the switch."""
    channels, axes = weight.shape[1] * groups, weight.ndim - 2
    size = (5,) * axes
    inputs = [ir.val("x", ir.DataType.FLOAT, (1, channels, *size))]
    threshold = (
        np.random.default_rng(1)
        .uniform(0.1, 0.9, (channels, *(1 for _ in size)))
        .astype(np.float32)
    )
    stored = {"w": weight, "t": threshold, "h": np.float32(1.5), "l": np.float32(0)}
    values = {
        name: ir.val(name, const_value=ir.tensor(np.asarray(data), name=name))
        for name, data in stored.items()
    }
    scope = {"pkg.torch.onnx.name_scopes": "['', 'conv', 'compression.ops.here', 'where']"}
    relu = ir.node("Relu", inputs)
    greater = ir.node("Greater", [relu.outputs[0], values["t"]])
    where = ir.node("Where", [greater.outputs[0], values["h"], values["l"]], metadata_props=scope)
    pads = {"group": groups, "pads": [1] * (2 * axes)}
    conv = ir.node("Conv", [where.outputs[0], values["w"]], pads)
    found = [relu, greater, where, conv]
    outputs = [conv.outputs[0]]
    if reader:
        second = ir.node("Conv", conv.inputs, pads)
        other = ir.node("ReduceMax", [where.outputs[0]], {"keepdims": 1})
        found.append(second if reader == "Conv" else other)
        outputs.append(found[-1].outputs[0])
    for number, node in enumerate(found):
        kind = ir.DataType.BOOL if node is greater else ir.DataType.FLOAT
        node.outputs[0].name, node.outputs[0].type = f"v{number}", ir.TensorType(kind)
    graph = ir.Graph(inputs, outputs, nodes=found, initializers=list(values.values()),
                     opset_imports={"": 20}, name="g")  # fmt: skip
    made = ir.Model(graph, ir_version=10)
    mark_switches(graph)
    return made


def run(made: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(serialized(made), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def test_signs_are_found_by_values():
    """±m in each channel is two values, however it came about; anything else is not."""
    weight = two_valued(4, 3, 3, 3)
    found = signs_of(weight)
    assert np.array_equal(np.where(found.positive, found.magnitude, -found.magnitude), weight)
    weight[2] = 0
    weight[2, 0] = -0.0
    found = signs_of(weight)
    back = np.where(found.positive, found.magnitude, -found.magnitude).astype(np.float32)
    assert np.array_equal(back.view(np.uint32), weight.view(np.uint32))
    for other in (np.float32(np.nan), np.float32(0), weight[0, 0, 0, 0] * 2):
        wrong = weight.copy()
        wrong[0, 1, 1, 1] = other
        assert signs_of(wrong) is None
    assert signs_of(weight.astype(np.float64)) is None


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (17, 9, 3, 3), (64, 5, 7), (16, 8, 3, 3, 3)])
def test_weights_are_stored_as_bits(shape):
    """The file has a bit for each weight, and the runtime gives the same output to the last bit."""
    weight = two_valued(*shape)
    plain, small = model(weight), model(weight)
    store_signs(small)
    clean(small)
    x = RANDOM.uniform(-1, 1, list(plain.graph.inputs[0].shape)).astype(np.float32)
    expected = run(plain, x)
    stored = {name: value.const_value.numpy() for name, value in small.graph.initializers.items()}
    assert "w" not in stored
    assert stored["w.bits"].nbytes == -(-weight.size // 8)
    assert np.array_equal(run(small, x), expected)
    assert len(serialized(small)) < len(serialized(plain))


def test_small_and_other_weights_stay():
    """Weights that bits would not make smaller, and those of more values, stay as they are."""
    for weight in (two_valued(4, 2, 3, 3), RANDOM.random((16, 8, 3, 3)).astype(np.float32)):
        made = model(weight)
        store_signs(made)
        assert "w" in made.graph.initializers
        assert [node.op_type for node in made.graph] == ["Relu", "Greater", "Where", "Conv"]


def test_switches_are_marked_and_probed_before_they_decide():
    """The note names the module and the call; the probe reads the input and gives ones and zeros."""
    made = model(two_valued(16, 8, 3, 3))
    (switch,) = switches(made.graph)
    assert '"compression.ops.here#0"' in switch.node.metadata_props[SWITCH]
    (probe,) = switch_probes(made.graph)
    assert probe.tensor == "v0"
    data = RANDOM.random((1, 8, 5, 5))
    assert np.array_equal(probe.codes(data), data > switch.threshold)


BINARY = {
    "two axes": (1, (16, 8, 3, 3), {}),
    "pointwise": (1, (5, 24, 1, 1), {}),
    "channels not a multiple of 8": (0, (16, 12, 3, 3), {}),
    "groups": (0, (16, 8, 3, 3), {"groups": 2}),
    "one axis": (0, (16, 8, 3), {}),
    "three axes": (0, (16, 8, 3, 3, 3), {}),
    "another reader": (1, (16, 8, 3, 3), {"reader": "ReduceMax"}),
    "two convolutions": (1, (16, 8, 3, 3), {"reader": "Conv"}),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_convolutions(name):
    """OpenVINO runs on bits what it can, and computes what the plain form computes, in all cases."""
    openvino = pytest.importorskip("openvino")
    count, shape, settings = BINARY[name]
    weight = two_valued(*shape)
    made = model(weight, **settings)
    (threshold,) = (switch.threshold for switch in switches(made.graph))
    plain = serialized(model(weight, **settings))
    use_binary_convolutions(made)
    clean(made)
    for probe in switch_probes(made.graph):
        assert probe.call == "compression.ops.here#0"
        assert np.array_equal(probe.threshold.ravel(), threshold.ravel())
    x = RANDOM.uniform(-1, 1, list(made.graph.inputs[0].shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(plain, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(serialized(made)), "CPU",
                                  {"INFERENCE_PRECISION_HINT": "f32"})  # fmt: skip
    kinds = [
        str(op.get_rt_info()["layerType"].value) for op in compiled.get_runtime_model().get_ops()
    ]
    assert kinds.count("BinaryConvolution") == count
    results = compiled([x])
    for place, expected in enumerate(session.run(None, {"x": x})):
        assert np.allclose(results[place], expected, atol=1e-5 * abs(expected).max())


def test_a_channel_without_weights_is_not_binary():
    """A magnitude of zero, by which OpenVINO would divide, keeps the convolution in floating point."""
    weight = two_valued(16, 8, 3, 3)
    weight[3] = 0
    made = model(weight)
    use_binary_convolutions(made)
    assert {node.op_type for node in made.graph} == {"Relu", "Greater", "Where", "Conv"}
