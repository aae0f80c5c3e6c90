# SPDX-License-Identifier: Apache-2.0
"""Weights of few bits: less than a byte each in the file, the same values, integer kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto

from nncf.onnx.pack import digits, pack_weights, smallest, table
from nncf.onnx.run import OnnxFile
from nncf.onnx.write import clean, deploy, serialized
from nncf.openvino.run import OpenVINOFile
from tests.onnx.drawing import RANDOM, Drawing, conv_norm, image, operations, run

NARROW = {TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2}


def packed(data: bytes, *, opset: int | None = None) -> bytes:
    """Deploy a drawing and pack its weights; ``opset`` is one that the user asked for."""
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    if opset is not None:
        model.graph.opset_imports[""] = opset
    deploy(model)
    pack_weights(model, raise_opset=opset is None)
    clean(model)
    result = serialized(model)
    onnx.checker.check_model(onnx.load_from_string(result))
    return result


def weight_types(data: bytes) -> set[int]:
    """Return the types of what is stored for the weights."""
    stored = onnx.load_from_string(data).graph.initializer
    return {item.data_type for item in stored if item.name.split(".")[-1] == "packed"}


def network(low: int, high: int, *, channels: int = 64, signs: bool = True) -> bytes:
    """Two convolutions with codes low…high, batch norms of both signs, a quantized result."""
    drawing = Drawing(x=(1, 3, 8, 8))
    factor = RANDOM.uniform(0.5, 2, channels) * (RANDOM.choice([-1, 1], channels) if signs else 1)
    codes = RANDOM.integers(low, high + 1, (channels, 3, 3, 3))
    y = conv_norm(drawing, drawing.quantize("x", 0.01), factor, codes=codes)
    y = drawing.quantize(drawing.add("Relu", y), 0.02)
    codes = RANDOM.integers(low, high + 1, (channels, channels, 3, 3))
    codes.reshape(-1)[:2] = low, high
    y = drawing.add("Conv", y, drawing.weight(codes.shape, codes=codes))
    return drawing.finish(drawing.quantize(y, 0.2, signed=True))


LEVELS = [(-8, 7), (0, 15), (-4, 3), (-3, 2), (-2, 1), (-1, 1), (0, 1), (-1, 0)]


@pytest.mark.parametrize("opset", [None, 18, 21, 25])
@pytest.mark.parametrize(("low", "high"), LEVELS)
def test_same_values_in_less_space(low: int, high: int, opset: int | None) -> None:
    """A packed file gives the bits of the unpacked one, in the bytes that its levels need."""
    data = network(low, high)
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    deploy(model)
    plain, result, x = serialized(model), packed(data, opset=opset), image()
    np.testing.assert_array_equal(run(result, x), run(plain, x))
    np.testing.assert_array_equal(run(result, x, optimize=False), run(plain, x, optimize=False))
    levels, codes = high - low + 1, 64 * 64 * 9
    per_byte = next(n for n in (8, 5, 4, 3, 2) if levels**n <= 256)
    if opset == 25 and per_byte == 5:  # INT2 has room for a level more
        per_byte = 4
    saved = codes - codes / per_byte
    assert len(plain) - len(result) > saved - 6000


@pytest.mark.parametrize(
    ("low", "high", "opset", "expected"),
    [
        (-8, 7, None, {TensorProto.INT4, TensorProto.UINT4}),
        (-8, 7, 20, {TensorProto.UINT8}),
        (0, 15, None, {TensorProto.UINT4}),
        (-2, 1, None, {TensorProto.UINT8}),
        (-2, 1, 25, {TensorProto.INT2, TensorProto.UINT2}),
    ],
)
def test_type_by_opset(low: int, high: int, opset: int | None, expected: set[int]) -> None:
    """4-bit codes are INT4 or UINT4 from opset 21 on, 2-bit ones INT2 from 25 on, else bytes."""
    types = weight_types(packed(network(low, high), opset=opset))
    assert types
    assert types <= expected
    assert (types & NARROW) == (expected & NARROW & types)


@pytest.mark.parametrize(("low", "raised"), [(-8, True), (-2, False), (-60, False)])
def test_opset_rises_only_for_int4(low: int, raised: bool) -> None:
    """The opset of the file changes when a weight is stored as INT4, and only then."""
    model = onnx.load_from_string(packed(network(low, -low - 1)))
    assert [item.version for item in model.opset_import] == [21 if raised else 20]


@pytest.mark.parametrize("opset", [None, 20, 25])
@pytest.mark.parametrize(("low", "high"), LEVELS)
def test_onnx_runtime_runs_them_on_integers(
    low: int, high: int, opset: int | None, tmp_path: Path
) -> None:
    """Every layer is an integer kernel, with codes unpacked when the file was loaded."""
    found = operations(packed(network(low, high), opset=opset), tmp_path, image())
    assert found["QLinearConv"] == 2
    assert not {"Conv", "FusedConv", "Cast", "Gather", "Add", "Mul", "Reshape"} & set(found)


@pytest.mark.parametrize("opset", [None, 20])
@pytest.mark.parametrize(("low", "high"), LEVELS)
def test_openvino_reads_them(low: int, high: int, opset: int | None) -> None:
    """OpenVINO finds int8 weights and computes what ONNX Runtime does, to a level."""
    result, x = packed(network(low, high), opset=opset), image()
    file = OpenVINOFile(result, threads=1)
    (name,) = file.output_names
    difference = np.abs(file({"x": x})[name] - OnnxFile(result, threads=1)({"x": x})[name])
    assert difference.max() <= 0.2001
    assert np.mean(difference > 0.01) < 0.02
    nodes = file.request.get_compiled_model().get_runtime_model().get_ops()
    kernels = [str(n.get_rt_info()["runtimePrecision"].value) for n in nodes if is_conv(n)]
    assert kernels == ["u8", "u8"] or kernels == ["i8", "u8"]


def is_conv(node: object) -> bool:
    return str(node.get_rt_info()["layerType"].value) == "Convolution"  # type: ignore[attr-defined]  # OpenVINO's


@pytest.mark.parametrize("count", [1, 3, 5, 7, 8, 41])
def test_last_byte_may_be_part_full(count: int, tmp_path: Path) -> None:
    """Weights whose number of elements fills no whole byte are cut to their size."""
    drawing = Drawing(x=(1, 37, 8, 8))
    codes = RANDOM.integers(-1, 1, (count, 37, 5, 5))
    y = drawing.add("Conv", drawing.quantize("x", 0.01), drawing.weight(codes.shape, codes=codes))
    data = drawing.finish(drawing.quantize(y, 0.05, signed=True))
    result, x = packed(data), image(37)
    assert weight_types(result) == ({TensorProto.UINT8} if count > 1 else weight_types(result))
    np.testing.assert_array_equal(run(result, x, optimize=False), run(packed(data, opset=18), x))
    assert operations(result, tmp_path, x)["QLinearConv"] == 1


def test_zero_points_are_counted_into_the_codes(tmp_path: Path) -> None:
    """An asymmetric 4-bit weight is UINT4 with an offset by channel and runs on integers."""
    drawing = Drawing(x=(1, 3, 8, 8))
    zero = RANDOM.integers(0, 16, 64).astype(np.uint8)
    scale = np.full(64, 0.02, np.float32)
    codes = RANDOM.integers(0, 16, (64, 3, 5, 5))
    weight = ((codes - zero.reshape(-1, 1, 1, 1)) * 0.02).astype(np.float32)
    stored = drawing.add("QuantizeLinear", weight, scale, zero, axis=0)
    inputs = drawing.nodes[-1].input[1:]
    weight_name = drawing.add("DequantizeLinear", stored, *inputs, axis=0)
    y = drawing.add("Conv", drawing.quantize("x", 0.01), weight_name, np.ones(64, np.float32))
    data = drawing.finish(drawing.quantize(y, 0.05, signed=True))
    result, x = packed(data), image()
    assert weight_types(result) == {TensorProto.UINT4}
    assert operations(result, tmp_path, x)["QLinearConv"] == 1
    difference = np.abs(run(result, x) - run(data, x, optimize=False))
    assert difference.max() <= 0.0501
    assert np.mean(difference > 0.01) < 0.02  # what parity allows


def test_biases_stay_precise_at_two_bits() -> None:
    """Long steps of 2-bit weights do not make the steps of the bias long."""
    drawing = Drawing(x=(1, 3, 8, 8))
    codes = RANDOM.integers(-2, 2, (64, 3, 3, 3))
    scale = np.full(64, 0.5, np.float32)
    weight = drawing.quantize((codes * scale[0]).astype(np.float32), scale, signed=True, axis=0)
    bias = RANDOM.normal(size=64).astype(np.float32)
    y = drawing.add("Conv", drawing.quantize("x", 0.05), weight, bias)
    data = drawing.finish(drawing.quantize(y, 0.05, signed=True))
    x = image()
    difference = np.abs(run(packed(data), x) - run(data, x, optimize=False))
    assert np.mean(difference > 0.01) < 0.02  # what parity allows


def test_weights_of_many_levels_stay() -> None:
    """Codes that need a byte each are stored as before, and so are very small weights."""
    for low, channels in ((-60, 64), (-8, 2)):
        assert weight_types(packed(network(low, -low - 1, channels=channels))) == set()


@settings(max_examples=200, deadline=None)
@given(
    levels=arrays.arrays(np.int8, st.integers(1, 16), unique=True),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 7)),
    seed=st.integers(0, 99),
)
def test_any_levels_come_back(levels: np.ndarray, shape: tuple[int, int], seed: int) -> None:
    """Whatever codes a weight has, levels, indices, table and offset give them back."""
    codes = np.random.default_rng(seed).choice(levels, shape)
    for axis in (0, 1, -1):
        small = smallest(codes, axis=axis)
        assert small is not None
        rows = table(small.levels, small.per_byte)
        numbers = digits(small.indices, len(small.levels), small.per_byte)
        assert numbers.max() < len(rows) <= 256
        back = rows[numbers].reshape(-1)[: codes.size].reshape(shape).astype(np.int16)
        np.testing.assert_array_equal(back + (0 if small.offset is None else small.offset), codes)
