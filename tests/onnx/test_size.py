# SPDX-License-Identifier: Apache-2.0
"""Size tables of exported files: every byte is somewhere, and what is saved is counted right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from nncf.compression.sizes import Size, SizeTable
from nncf.errors import CheckpointError
from nncf.onnx import size as onnx_size
from nncf.onnx.two_level import store_signs
from nncf.onnx.write import clean, serialized
from nncf.openvino import size as openvino_size
from nncf.openvino.write import write_ir
from tests.onnx.drawing import RANDOM, Drawing
from tests.onnx.test_pack import packed

SHAPE = (64, 32, 3, 3)
ELEMENTS = 64 * 32 * 9
CODES = [(-8, 7), (-2, 1), (0, 1), (-60, 60)]
BYTES = {(-8, 7): ELEMENTS // 2, (-2, 1): ELEMENTS // 4, (0, 1): ELEMENTS // 8}


def convolution(low: int, high: int) -> bytes:
    """One convolution with codes low…high and a float bias of 64."""
    drawing = Drawing(x=(1, 32, 8, 8))
    codes = RANDOM.integers(low, high + 1, SHAPE)
    codes.reshape(-1)[:2] = low, high
    bias = np.ones(64, np.float32)
    y = drawing.add("Conv", drawing.quantize("x", 0.01), drawing.weight(SHAPE, codes=codes), bias)
    return packed(drawing.finish(drawing.add("Relu", y)))


def by_form(table: SizeTable) -> dict[str, list[Size]]:
    found: dict[str, list[Size]] = {}
    for row in table.rows:
        found.setdefault(row.form, []).append(row)
    return found


@pytest.mark.parametrize(("low", "high"), CODES)
@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_every_byte_of_an_exported_file(low: int, high: int, ending: str, tmp_path: Path) -> None:
    """The total is the size of the files; codes count with what they stand for in float32."""
    path, data = tmp_path / f"m{ending}", convolution(low, high)
    if ending == ".onnx":
        path.write_bytes(data)
        table = onnx_size.size_table(path)
    else:
        write_ir(data, path)
        table = openvino_size.size_table(path)
    assert table.total == sum(file.stat().st_size for file in tmp_path.iterdir())
    rows = by_form(table)
    (weight,) = rows.get("codes", []) + rows.get("packed codes", [])
    assert weight.dense == 4 * ELEMENTS
    assert weight.packed == BYTES.get((low, high), ELEMENTS)
    assert weight.form == ("codes" if (low, high) in (CODES[0], CODES[3]) else "packed codes")
    assert all(row.dense == 0 for form in ("scale", "zero point") for row in rows[form])
    assert sum(row.packed for row in rows["scale"]) == 4 * 64 + 4
    if ending == ".onnx":
        assert [(row.dense, row.packed) for row in rows["dense"]] == [(256, 256)]


def test_the_float_model_is_what_dense_bytes_add_up_to(tmp_path: Path) -> None:
    """Dense bytes of a quantized file are those of its float32 weights and biases."""
    path = tmp_path / "m.onnx"
    path.write_bytes(convolution(-8, 7))
    table = onnx_size.size_table(path)
    assert table.dense == 4 * ELEMENTS + 4 * 64
    assert f"{table.total:,} bytes" in table.summary
    assert f"{table.dense / table.total:.2f} ×" in table.summary


def test_tensors_of_other_programs_are_counted(tmp_path: Path) -> None:
    """Constant nodes, typed fields and tensors in another file take the bytes that they take."""
    stored = [
        numpy_helper.from_array(np.ones((4, 4), np.float32), "raw"),
        helper.make_tensor("typed", TensorProto.INT64, [3], [1, 2, 300]),
    ]
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.ones(9, np.float32))
    )
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in "xy")
    graph = helper.make_graph(
        [constant, helper.make_node("Add", ["x", "raw"], ["y"])], "g", [x], [y], stored
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    table = onnx_size.size_table(path)
    assert {row.name: row.packed for row in table.rows} == {"raw": 64, "typed": 6, "c": 36}
    assert table.total == path.stat().st_size
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w", size_threshold=64)
    table = onnx_size.size_table(path)
    assert table.total == path.stat().st_size + (tmp_path / "w").stat().st_size
    (tmp_path / "w").unlink()
    with pytest.raises(CheckpointError, match=r"its tensors, .*w, cannot be read"):
        onnx_size.size_table(path)


def test_bits_of_binary_weights(tmp_path: Path) -> None:
    """Weights stored as signs count a bit an element, with 4 bytes that it stands for."""
    drawing = Drawing(x=(1, 32, 8, 8))
    weight = RANDOM.choice([-1, 1], SHAPE) * RANDOM.uniform(0.5, 1, (64, 1, 1, 1))
    y = drawing.add("Relu", drawing.add("Conv", "x", weight.astype(np.float32)))
    model = ir.from_proto(onnx.ModelProto.FromString(drawing.finish(y)))
    store_signs(model)
    clean(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(serialized(model))
    table = onnx_size.size_table(path)
    assert table.total == path.stat().st_size
    (row,) = by_form(table)["packed codes"]
    assert (row.packed, row.dense) == (ELEMENTS // 8, ELEMENTS * 4)
    assert table.dense == ELEMENTS * 4


def test_numbers_that_choose_in_the_forward_are_no_codes(tmp_path: Path) -> None:
    """Where and FakeQuantize on activations leave what they read as it is: it is in FP32, too."""
    drawing = Drawing(x=(1, 3, 8, 8))
    high, low = np.float32(1), np.zeros((3, 1, 1), np.float32)
    drawing.add("Where", drawing.add("Greater", "x", np.float32(0.5)), high, low)
    path = tmp_path / "m.onnx"
    path.write_bytes(drawing.finish(drawing.nodes[-1].output[0]))
    assert [row.form for row in onnx_size.size_table(path).rows] == ["dense"] * 3


def test_the_bias_of_a_linear_layer_is_no_scale(tmp_path: Path) -> None:
    """OpenVINO multiplies biases of Gemm by its beta; they count as what they are."""
    drawing = Drawing(x=(2, 8))
    weight, bias = np.ones((4, 8), np.float32), np.ones(4, np.float32)
    y = drawing.add("Gemm", "x", weight, bias, transB=1)
    write_ir(drawing.finish(y), tmp_path / "m.xml")
    table = openvino_size.size_table(tmp_path / "m.xml")
    assert {row.name: (row.dense, row.form) for row in table.rows if row.packed > 8} == {
        "stored_0": (128, "dense"),
        "stored_1": (16, "dense"),
    }


@pytest.mark.parametrize("content", [None, b"PK\x03\x04", b"", b"<net></net>", b"<other/>"])
@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_other_files_are_refused(content: bytes | None, ending: str, tmp_path: Path) -> None:
    """What is missing or no file of the kind is an error that names it."""
    path = tmp_path / f"m{ending}"
    if content is not None:
        path.write_bytes(content)
    read = onnx_size.size_table if ending == ".onnx" else openvino_size.size_table
    with pytest.raises(CheckpointError, match="m" + ending):
        read(path)


def test_an_ir_without_its_weights_is_refused(tmp_path: Path) -> None:
    """The error names the missing file of the two."""
    write_ir(convolution(-8, 7), tmp_path / "m.xml")
    (tmp_path / "m.bin").unlink()
    with pytest.raises(CheckpointError, match=r"m\.bin, cannot be read"):
        openvino_size.size_table(tmp_path / "m.xml")
