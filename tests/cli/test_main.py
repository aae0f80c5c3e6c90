# SPDX-License-Identifier: Apache-2.0
"""The commands print what they promise and fail with a message, not a traceback."""

import json
import subprocess
import sys

import jsonschema
import pytest

from nncf.cli import main

CONFIG = """{
    // a comment
    "epochs": 3,
    "compression": {"algorithm": "quantization", "weights": {"bits": 4},
                    "scope_overrides": {"weights": {"Net/conv": {"bits": 8}}}},
}"""


def test_config_schema(capsys):
    """config-schema prints a valid JSON schema that names its dialect."""
    assert main(["config-schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validators.validator_for(schema).check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")


def test_explain(tmp_path, capsys):
    """Explain prints every option with its value and where it is from."""
    path = tmp_path / "config.json"
    path.write_text(CONFIG, encoding="utf-8")
    assert main(["explain", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["compression[0].weights.bits", "4", "file"] in lines
    assert ["compression[0].activations.bits", "unset", "default"] in lines
    assert ["target_device", '"ANY"', "default"] in lines
    assert ["left", "to", "the", "training", "script:", "epochs"] in lines
    overrides = next(line for line in lines if line[0] == "compression[0].scope_overrides.weights")
    assert overrides[1:] == ['{"Net/conv":', '{"bits":', "8}}", "file"]


def test_options(capsys):
    """Options lists the keys of an algorithm, or of the top level."""
    assert main(["options", "magnitude_sparsity"]) == 0
    assert "params.sparsity_target  (a number ≥ 0 and < 1; 0.5)" in capsys.readouterr().out
    assert main(["options"]) == 0
    assert "input_info[].sample_size  (a list, each item a whole number ≥ 1; required)" in (
        capsys.readouterr().out
    )


def test_size(tmp_path, capsys):
    """Size prints a table whose total is the size of the file, and refuses other files."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.safetensors"
    save_packed = pytest.importorskip("nncf.torch").save_packed
    save_packed({"weight": torch.eye(100).repeat(4, 20), "bias": torch.ones(3)}, path)
    assert main(["size", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["weight", "400×2000", "F32", "3,200,000", "40,000", "gaps"] in lines
    assert int(lines[-1][2].replace(",", "")) == path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["size", str(path)]) == 1
    assert "model.safetensors: it has " in capsys.readouterr().err


def test_size_of_exported_files(tmp_path, capsys):
    """Size reads ONNX files and IRs by their ending."""
    write_ir = pytest.importorskip("nncf.openvino.write").write_ir
    convolution = pytest.importorskip("tests.onnx.test_size").convolution
    data = convolution(-8, 7)
    (tmp_path / "m.onnx").write_bytes(data)
    write_ir(data, tmp_path / "m.xml")
    for name, files in (("m.onnx", ["m.onnx"]), ("m.xml", ["m.xml", "m.bin"])):
        assert main(["size", str(tmp_path / name)]) == 0
        total = capsys.readouterr().out.splitlines()[-1].split()[2]
        expected = sum((tmp_path / file).stat().st_size for file in files)
        assert int(total.replace(",", "")) == expected


def test_errors_are_one_message(tmp_path, capsys):
    """A wrong file gives exit status 1 and the message of the error."""
    assert main(["explain", str(tmp_path / "none.json")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "none.json: cannot be read" in captured.err


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["explain"]])
def test_wrong_usage(arguments, capsys):
    """Wrong usage gives exit status 2 and the usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: nncf" in capsys.readouterr().err


def test_python_m_nncf():
    """``python -m nncf`` is the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "nncf", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("nncf ")
