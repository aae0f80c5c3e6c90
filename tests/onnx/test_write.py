# SPDX-License-Identifier: Apache-2.0
"""The deployed form: what changes in the file, and that what it computes does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from nncf.onnx.activations import leave_out_zero_points
from nncf.onnx.write import clean, deploy, find_probes, rename, serialized, with_probes
from tests.onnx.drawing import RANDOM, Drawing, conv_norm, image, operations, run


def deployed(data: bytes) -> bytes:
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    deploy(model)
    return serialized(model)


@pytest.mark.parametrize(
    "factor", [[1.0, 0.5, 2.0, 1.5], [-1.0, 0.5, -2.0, 1.0], [0.0, 1e-30, -1e-42, 1.0]]
)
@pytest.mark.parametrize("lowest", [-63, -128])
def test_batch_norm_folds_exactly(factor: list[float], lowest: int) -> None:
    """A batch norm goes into the int8 weight unchanged in value, any sign, with code -128 too."""
    drawing = Drawing(x=(1, 3, 8, 8))
    codes = RANDOM.integers(lowest, 64, (4, 3, 3, 3))
    codes[:, 0, 0, 0] = lowest
    y = conv_norm(drawing, drawing.quantize("x", 0.01), np.array(factor), codes=codes)
    data = drawing.finish(y)
    result, x = deployed(data), image()
    assert "BatchNormalization" not in {n.op_type for n in onnx.load_from_string(result).graph.node}
    np.testing.assert_allclose(run(result, x), run(data, x, optimize=False), rtol=1e-4, atol=1e-5)


def test_negated_minus_128_survives_integer_kernels(tmp_path: Path) -> None:
    """With an output quantizer as well, code -128 under a negative batch norm stays exact."""
    drawing = Drawing(x=(1, 3, 8, 8))
    codes = RANDOM.integers(-128, 128, (4, 3, 3, 3))
    codes[:, 0, 0, 0] = -128
    y = conv_norm(drawing, drawing.quantize("x", 0.01), np.array([-1.0, 1, -2, 1]), codes=codes)
    data = drawing.finish(drawing.quantize(y, 0.1, signed=True))
    x = image()
    difference = np.abs(run(deployed(data), x) - run(data, x, optimize=False))
    assert difference.max() <= 0.1001


def test_weights_are_stored_as_int8() -> None:
    """The float weight is gone: int8 codes and one scale per channel are stored."""
    drawing = Drawing(x=(1, 3, 8, 8))
    y = drawing.add("Conv", drawing.quantize("x", 0.01), drawing.weight((64, 3, 3, 3)))
    stored = onnx.load_from_string(deployed(drawing.finish(y))).graph.initializer
    sizes = {item.data_type: int(np.prod(item.dims)) for item in stored if len(item.dims) == 4}
    assert sizes == {TensorProto.INT8: 64 * 27}
    assert all(np.prod(i.dims) <= 64 for i in stored if i.data_type == TensorProto.FLOAT)


def test_clamped_weight_is_folded() -> None:
    """Operations between a parameter and its quantizer are computed once, in the file."""
    drawing = Drawing(x=(1, 3, 8, 8))
    raw = RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32)
    bound = np.full((4, 1, 1, 1), 0.63, np.float32)
    clamped = drawing.add("Min", drawing.add("Max", raw, -bound), bound)
    weight = drawing.quantize(clamped, np.full(4, 0.01), signed=True, axis=0)
    data = drawing.finish(drawing.add("Conv", drawing.quantize("x", 0.01), weight))
    result, x = deployed(data), image()
    types = {node.op_type for node in onnx.load_from_string(result).graph.node}
    assert types == {"QuantizeLinear", "DequantizeLinear", "Conv"}
    np.testing.assert_allclose(run(result, x), run(data, x, optimize=False), rtol=1e-5, atol=1e-5)


def test_activations_become_uint8() -> None:
    """A signed activation quantizer is written as uint8 with its zero point 128 higher."""
    drawing = Drawing(x=(1, 3, 8, 8))
    data = drawing.finish(drawing.quantize("x", 0.01, 3, signed=True))
    model = onnx.load_from_string(deployed(data))
    zero = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    point = zero[model.graph.node[0].input[2]]
    assert (point.dtype, int(point), point.shape) == (np.uint8, 131, ())
    x = image() - 1
    np.testing.assert_array_equal(
        run(deployed(data), x, optimize=False), run(data, x, optimize=False)
    )


def test_repeated_quantizers_merge() -> None:
    """Two equal quantizers of one tensor become one; both can still be read."""
    drawing = Drawing(x=(1, 3, 8, 8))
    y = drawing.add("Add", drawing.quantize("x", 0.01), drawing.quantize("x", 0.01))
    model = ir.from_proto(onnx.ModelProto.FromString(drawing.finish(y)))
    deploy(model)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 1
    probes = find_probes(model)
    assert len(probes) == 2
    assert len({probe.tensor for probe in probes}) == 1


def test_residual_block_runs_on_integers(tmp_path: Path) -> None:
    """ONNX Runtime fuses a block with batch norm, ReLU, shortcut and maximum entirely."""
    drawing = Drawing(x=(1, 3, 8, 8))
    x = drawing.quantize("x", 0.01)
    y = drawing.add("Relu", conv_norm(drawing, x, np.ones(3)))
    y = drawing.quantize(y, 0.02)
    z = drawing.add("Conv", y, drawing.weight((3, 3, 1, 1)), pads=[0, 0, 0, 0])
    z = drawing.add("Relu", drawing.add("Add", drawing.quantize(z, 0.03, signed=True), y))
    z = drawing.add("MaxPool", drawing.quantize(z, 0.04), kernel_shape=[2, 2], strides=[2, 2])
    z = drawing.add("Conv", z, drawing.weight((3, 3, 1, 1)))
    data = drawing.finish(drawing.quantize(z, 0.05, signed=True))
    found = operations(deployed(data), tmp_path, image())
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 1
    assert not {"Conv", "FusedConv", "Relu", "Add", "MaxPool"} & set(found)


def test_concat_is_requantized(tmp_path: Path) -> None:
    """Concat of equal grids and the convolution after it run on integers, values unchanged."""
    drawing = Drawing(x=(1, 3, 8, 8))
    x = drawing.quantize("x", 0.01)
    parts = [drawing.add("Conv", x, drawing.weight((3, 3, 1, 1))) for _ in range(2)]
    joined = drawing.add("Concat", *[drawing.quantize(p, 0.02, signed=True) for p in parts], axis=1)
    y = drawing.add("Conv", joined, drawing.weight((2, 6, 1, 1)))
    data = drawing.finish(drawing.quantize(y, 0.03, signed=True))
    result, sample = deployed(data), image()
    found = operations(result, tmp_path, sample)
    assert found["QLinearConv"] == 3
    assert found["QLinearConcat"] == 1
    np.testing.assert_array_equal(
        run(result, sample, optimize=False), run(data, sample, optimize=False)
    )


def test_channel_scales_before_depthwise_are_absorbed(tmp_path: Path) -> None:
    """A per-channel quantizer before a depthwise convolution becomes per tensor, same codes."""
    drawing = Drawing(x=(1, 3, 8, 8))
    y = drawing.add("Relu", conv_norm(drawing, drawing.quantize("x", 0.01), np.ones(4)))
    scales = np.array([0.01, 0.02, 0.03, 0.04])
    y = drawing.quantize(y, scales)
    y = drawing.add("Conv", y, drawing.weight((4, 1, 3, 3)), group=4)
    data = drawing.finish(drawing.quantize(y, 0.02, signed=True))
    result, sample = deployed(data), image()
    found = operations(result, tmp_path, sample)
    assert found["QLinearConv"] == 2
    difference = np.abs(run(result, sample) - run(data, sample, optimize=False))
    assert difference.max() <= 0.0201  # one step of the last quantizer


@pytest.mark.parametrize(("scale", "kept"), [(6 / 255, False), (7 / 255, True)])
def test_clip_goes_only_where_the_grid_clips(scale: float, kept: bool) -> None:
    """A ReLU6 before a quantizer is removed only if the grid ends at or below 6."""
    drawing = Drawing(x=(1, 3, 8, 8))
    y = drawing.add("Clip", "x", np.array(0, np.float32), np.array(6, np.float32))
    data = drawing.finish(drawing.quantize(y, scale))
    result = deployed(data)
    types = {node.op_type for node in onnx.load_from_string(result).graph.node}
    assert ("Clip" in types) == kept
    x = RANDOM.uniform(-3, 9, (1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(result, x), run(data, x, optimize=False))


def test_linear_on_three_axes_runs_on_integers(tmp_path: Path) -> None:
    """MatMul with a transposed weight and a bias becomes an integer Gemm of the same value."""
    drawing = Drawing(x=(2, 5, 8))
    weight = drawing.add("Transpose", drawing.weight((6, 8)), perm=[1, 0])
    y = drawing.add("MatMul", drawing.quantize("x", 0.01, signed=True), weight)
    bias = RANDOM.normal(size=6).astype(np.float32)
    data = drawing.finish(drawing.add("Add", y, bias))
    result, x = deployed(data), RANDOM.normal(size=(2, 5, 8)).astype(np.float32) / 2
    assert operations(result, tmp_path, x)["QGemm"] == 1
    np.testing.assert_allclose(run(result, x), run(data, x, optimize=False), atol=2e-3)


def test_bias_far_beyond_its_weight_stays(tmp_path: Path) -> None:
    """A bias that int32 codes could not hold at the weight's scale is still added in full."""
    drawing = Drawing(x=(1, 3, 8, 8))
    y = conv_norm(drawing, drawing.quantize("x", 0.01), np.array([1e-9, 1.0, 1e-12, 0.0]))
    data = drawing.finish(drawing.quantize(y, 0.05, signed=True))
    result, x = deployed(data), image()
    difference = np.abs(run(result, x) - run(data, x, optimize=False))
    assert difference.max() <= 0.0501


@pytest.mark.parametrize("quantized", [True, False])
def test_biases_for_openvino_are_added_in_their_shape(quantized: bool) -> None:
    """The other form adds the bias after the convolution and computes the same values."""
    drawing = Drawing(x=(1, 3, 8, 8))
    weight = drawing.weight((4, 3, 3, 3)) if quantized else np.ones((4, 3, 3, 3), np.float32)
    y = drawing.add("Conv", "x", weight, RANDOM.normal(size=4).astype(np.float32))
    data = drawing.finish(drawing.add("Relu", y))
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    deploy(model, for_onnx_runtime=False)
    (convolution,) = (node for node in model.graph if node.op_type == "Conv")
    assert len(convolution.inputs) == 2
    x = image()
    np.testing.assert_allclose(run(serialized(model), x), run(data, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("zero", "left"), [(0, 2), (3, 3)])
def test_zero_points_of_zero_are_left_out(zero: int, left: int) -> None:
    """Only zero points that are zero go, and values stay."""
    drawing = Drawing(x=(1, 3, 8, 8))
    data = drawing.finish(drawing.quantize("x", 0.01, zero))
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    leave_out_zero_points(model.graph)
    clean(model)
    assert [len(node.inputs) for node in model.graph] == [left, left]
    x = image()
    np.testing.assert_array_equal(run(serialized(model), x), run(data, x))


def test_file_tells_nothing_of_the_machine() -> None:
    """Stack traces and module paths that the exporter notes are not in the file."""
    drawing = Drawing(x=(1, 3, 8, 8))
    drawing.quantize("x", 0.01)
    note = drawing.nodes[-1].metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.stack_trace", "File somebody/model.py"
    assert b"somebody" not in deployed(drawing.finish(drawing.nodes[-1].output[0]))


def test_probes_read_the_codes() -> None:
    """With probes the file gives each quantizer's codes beside unchanged outputs."""
    drawing = Drawing(x=(1, 3, 8, 8))
    y = drawing.add(
        "Conv", drawing.quantize("x", 0.01, 3, signed=True), drawing.weight((2, 3, 1, 1))
    )
    data = drawing.finish(drawing.quantize(y, 0.05, signed=True))
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    deploy(model)
    rename(model, ["in"], ["out"])
    probes, written = find_probes(model), serialized(model)
    x = image()
    session = onnxruntime.InferenceSession(with_probes(written, probes))
    results = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {"in": x}), strict=True)
    )
    np.testing.assert_array_equal(results["out"], run(written, x))
    codes = probes[0].codes(results[probes[0].tensor])
    expected = np.clip(np.rint(x / np.float32(0.01)) + 3, -128, 127)
    np.testing.assert_array_equal(codes, expected)
