# SPDX-License-Identifier: Apache-2.0
"""Export of models with native fake-quantize calls: the file is proven, named, left or not."""

from __future__ import annotations

import copy
import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nncf
from nncf.errors import ExportError, MissingDependency, ParityError, UnsupportedFormat
from nncf.onnx.run import OnnxFile
from nncf.openvino.run import OpenVINOFile
from nncf.torch import deployment
from nncf.torch.export import Naming, Proof, export


def activation(x: Tensor, scale: float, *, signed: bool = False) -> Tensor:
    low, high = (-128, 127) if signed else (0, 255)
    return torch.fake_quantize_per_tensor_affine(x, scale, 0, low, high)


class Network(nn.Module):
    """Convolution, batch norm, shortcut, depthwise convolution, concat, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(16, 64, 1)
        self.linear = nn.Linear(64, 10)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)
        for layer in (self.conv, self.depthwise, self.pointwise, self.linear):
            layer.weight.data.copy_(self.weight(layer))
        self.eval().requires_grad_(False)

    def weight(self, layer: nn.Module) -> Tensor:
        limits = layer.weight.flatten(1).abs().amax(1)
        scale = limits.detach() / 127
        if hasattr(layer, "step"):
            scale = layer.step
        else:
            layer.register_buffer("step", scale)
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(layer.weight, scale, zeros, 0, -128, 127)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        x = activation(x, 0.025, signed=True)
        x = F.relu(self.norm(F.conv2d(x, self.weight(self.conv), self.conv.bias, padding=1)))
        x = activation(x, 0.01)
        depthwise = self.depthwise
        y = F.conv2d(x, self.weight(depthwise), depthwise.bias, padding=1, groups=8)
        x = torch.cat([x, activation(F.relu(y), 0.01)], dim=1)
        x = F.relu(F.conv2d(x, self.weight(self.pointwise), self.pointwise.bias))
        x = activation(activation(x, 0.01).mean((2, 3)), 0.005)
        x = F.linear(x, self.weight(self.linear), self.linear.bias)
        return x if gain is None else x * gain


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network()


def samples() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),), {}


@pytest.mark.parametrize(
    ("name", "save_format"),
    [
        ("model.onnx", None),
        ("model.onnx", "onnx_18"),
        ("fq.onnx", "onnx_fakequantize"),
        ("m.xml", None),
    ],
)
def test_file_equals_the_model(
    network: Network, tmp_path: Path, name: str, save_format: str | None
) -> None:
    """Each format is written under its name alone and agrees in every quantizer and output."""
    report = export(network, tmp_path / name, example_inputs=samples(), save_format=save_format)
    assert report.ok
    assert len([layer for layer in report.layers if layer.levels is not None]) == 5
    assert report.outputs[0].agreement == 1.0
    written = {file.name for file in tmp_path.iterdir()}
    assert written == ({"m.xml", "m.bin"} if name == "m.xml" else {name})
    runner = OnnxFile if report.runtime == "ONNX Runtime" else OpenVINOFile
    result = runner(tmp_path / name)({"input.0": samples()[0][0].numpy()})["output.0"]
    np.testing.assert_allclose(result, network(*samples()[0]).numpy(), atol=0.02)


def test_opset_is_the_one_asked_for(network: Network, tmp_path: Path) -> None:
    """``onnx_<opset>`` sets the version of the standard operators."""
    export(network, tmp_path / "m.onnx", example_inputs=samples(), save_format="onnx_19")
    assert [o.version for o in onnx.load(tmp_path / "m.onnx").opset_import if not o.domain] == [19]


def test_opset_that_the_exporter_cannot_write_is_refused(
    network: Network, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An opset that the file would not have is an error that says which one it could have."""
    with pytest.raises(ExportError, match=r'"onnx_12".*wrote opset 18'):
        export(network, tmp_path / "m.onnx", example_inputs=samples(), save_format="onnx_12")
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "save_format", "bytes_a_weight"),
    [
        ("m.onnx", None, 0.5),
        ("m.onnx", "onnx_19", 0.5),
        ("m.onnx", "onnx_int8", 1),
        ("m.onnx", "onnx_fakequantize", 0.5),
        ("m.xml", None, 0.5),
    ],
)
def test_weights_of_four_bits_take_half_a_byte(
    tmp_path: Path, name: str, save_format: str | None, bytes_a_weight: float
) -> None:
    """Each format stores 4-bit weights two in a byte, "onnx_int8" one, and is proven equal."""
    model = Narrow()
    report = export(model, tmp_path / name, example_inputs=samples(), save_format=save_format)
    count = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    sizes = report.sizes
    assert sizes is not None
    assert sizes.total == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert f"The file: {sizes.total:,} bytes" in str(report)
    codes = [row for row in sizes.rows if row.form in ("codes", "packed codes")]
    assert sum(row.packed for row in codes) == count * bytes_a_weight
    assert sum(row.dense for row in codes) == count * 4
    assert {row.name.partition(".weight")[0] for row in codes} == {"conv", "linear"}


class Narrow(nn.Module):
    """A convolution with a batch norm of both signs and a linear layer, weights of 4 bits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.conv = nn.Conv2d(3, 96, 3, bias=False)
        self.norm = nn.BatchNorm2d(96)
        self.norm.weight.data = torch.randn(96, generator=generator)
        self.linear = nn.Linear(96 * 36, 8)
        for layer in (self.conv, self.linear):
            codes = torch.randint(-8, 8, layer.weight.shape, generator=generator)
            layer.weight.data = codes * 0.02
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        def weight(layer: nn.Module) -> Tensor:
            steps, zeros = torch.full((len(layer.weight),), 0.02), torch.zeros(len(layer.weight))
            return torch.fake_quantize_per_channel_affine(
                layer.weight, steps, zeros.int(), 0, -128, 127
            )

        x = F.relu(self.norm(F.conv2d(activation(x, 0.025, signed=True), weight(self.conv))))
        return F.linear(activation(x, 0.02).flatten(1), weight(self.linear), self.linear.bias)


@pytest.mark.parametrize("opset", [0, 99])
def test_opset_that_the_runtime_cannot_read_is_refused(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int
) -> None:
    """The error comes before the model is traced, and names the runtime that must run the file."""
    monkeypatch.setattr(torch.onnx, "export", None)
    with pytest.raises(UnsupportedFormat, match=f"ONNX Runtime .* does not read opset {opset}"):
        export(network, tmp_path / "m.onnx", example_inputs=samples(), save_format=f"onnx_{opset}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "save_format", "standard", "error"),
    [
        ("m.onnx", None, True, None),
        ("m.xml", None, False, None),
        ("m.onnx", "onnx_int8", None, None),
        ("m.onnx", "onnx_21", None, None),
        ("m.onnx", "onnx_99", None, UnsupportedFormat),
        ("m.onnx", "tflite", None, UnsupportedFormat),
        ("m.xml", "onnx", None, UnsupportedFormat),
        ("m.onnx", None, False, MissingDependency),
        ("m.xml", None, None, MissingDependency),
        ("none/m.onnx", None, None, ExportError),
    ],
)
def test_form_is_checked_before_training(
    path: str,
    save_format: str | None,
    standard: bool | None,
    error: type[Exception] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """check_export raises what export would about form, packages and place, and writes nothing."""
    section = {"algorithm": "quantization", "export_to_onnx_standard_ops": standard}
    config = nncf.NNCFConfig.from_dict(
        {"input_info": {"sample_size": [1, 4]}, "compression": section}
    )
    controller, _ = nncf.create_compressed_model(nn.Linear(4, 2), config, dump_graphs=False)
    find = importlib.util.find_spec
    if error is MissingDependency:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name)
        )
    with pytest.raises(error) if error is not None else nullcontext():
        controller.check_export(str(tmp_path / path), save_format)
    assert list(tmp_path.iterdir()) == []


def test_names_and_keyword_inputs(network: Network, tmp_path: Path) -> None:
    """Inputs and outputs carry the names asked for, keyword arguments among them."""
    inputs = (samples()[0], {"gain": torch.tensor(2.0)})
    names = Naming(inputs=["image", "gain"], outputs=["logits"])
    export(network, tmp_path / "m.onnx", example_inputs=inputs, naming=names)
    file = OnnxFile(tmp_path / "m.onnx")
    assert (file.input_names, file.output_names) == (("image", "gain"), ("logits",))
    wrong = Naming(outputs=["a", "b"])
    with pytest.raises(ExportError, match="2 names were given for outputs"):
        export(network, tmp_path / "n.onnx", example_inputs=inputs, naming=wrong)


def test_the_users_model_stays(network: Network, tmp_path: Path) -> None:
    """Mode, weights, keys and attributes are the same after an export as before."""
    model = copy.deepcopy(network)
    model.train()
    before = copy.deepcopy(model.state_dict())
    export(model, tmp_path / "m.onnx", example_inputs=samples(), proof=Proof(network))
    assert model.training
    assert model.norm.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_nothing_is_printed(
    network: Network, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: Any
) -> None:
    """The exporter's progress, warnings and logs do not reach the user."""
    export(network, tmp_path / "m.onnx", example_inputs=samples())
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


def test_another_trained_model_is_noticed(network: Network, tmp_path: Path) -> None:
    """A file that computes something else than the reference is refused and not left behind."""
    torch.manual_seed(5)
    with pytest.raises(ParityError, match=r"differs is output\.0"):
        export(network, tmp_path / "m.onnx", example_inputs=samples(), proof=Proof(Network()))
    assert not list(tmp_path.iterdir())


def test_first_wrong_operation_is_named(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the file's weight of one layer is wrong, the quantizer after that layer is named."""
    original = deployment.serialized

    def damage(model: Any) -> bytes:
        proto = onnx.ModelProto.FromString(original(model))
        weight = next(i for i in proto.graph.initializer if i.name.startswith("depthwise.weight"))
        weight.raw_data = bytes(len(weight.raw_data))
        return proto.SerializeToString()

    monkeypatch.setattr(deployment, "serialized", damage)
    third = "fake_quantize_per_tensor_affine_2"
    with pytest.raises(ParityError, match=rf"first operation that differs is {third}"):
        export(network, tmp_path / "m.onnx", example_inputs=samples())
    assert not list(tmp_path.iterdir())


def test_an_existing_file_survives_a_failed_export(network: Network, tmp_path: Path) -> None:
    """What stood under the name before is untouched when the new file does not hold."""
    path = tmp_path / "m.onnx"
    path.write_text("the last good one")
    with pytest.raises(ParityError):
        export(network, path, example_inputs=samples(), proof=Proof(lambda x: -network(x)))
    assert path.read_text() == "the last good one"


def test_fewer_bits_clamp_and_fake_quantize(tmp_path: Path) -> None:
    """A clamp before the 8-bit call makes 4 bits: 16 levels in the FakeQuantize form."""

    class FourBits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return activation(torch.clamp(x, 0.0, 1.5), 0.1) * 2.0

    inputs = ((torch.rand(1, 3, 8, 8) * 2,), {})
    path = tmp_path / "m.onnx"
    report = export(FourBits(), path, example_inputs=inputs, save_format="onnx_fakequantize")
    assert report.ok
    node = next(n for n in onnx.load(path).graph.node if n.op_type == "FakeQuantize")
    assert node.domain == "org.openvinotoolkit"
    assert [a.i for a in node.attribute if a.name == "levels"] == [16]
    assert export(FourBits(), tmp_path / "q.onnx", example_inputs=inputs).ok


def test_model_without_quantizers(tmp_path: Path) -> None:
    """A plain model is exported and compared by its outputs."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    report = export(model, tmp_path / "m.onnx", example_inputs=samples(), proof=Proof(model.eval()))
    assert report.ok
    assert report.layers == ()
    assert report.outputs[0].relative < 1e-5


@pytest.mark.parametrize(
    ("name", "save_format", "message"),
    [
        ("m.onnx", "frozen_graph", "Unsupported saving format: 'frozen_graph'"),
        ("m.onnx", "onnx_", "Unsupported saving format"),
        ("m.pb", None, "says no format"),
        ("m.xml", "onnx", "do not go together"),
        ("m.onnx", "openvino", "do not go together"),
    ],
)
def test_unknown_formats(
    network: Network, tmp_path: Path, name: str, save_format: str | None, message: str
) -> None:
    """A format that cannot be written is refused before anything is done, as ValueError too."""
    with pytest.raises(UnsupportedFormat, match=message) as caught:
        export(network, tmp_path / name, example_inputs=samples(), save_format=save_format)
    assert isinstance(caught.value, ValueError)


def test_unwritable_paths(network: Network, tmp_path: Path) -> None:
    """A folder that is absent or is no folder, and a path that is one: each a clear error."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent" / "m.onnx", tmp_path / "file" / "m.onnx"):
        with pytest.raises(ExportError, match="Cannot write to"):
            export(network, path, example_inputs=samples())
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        export(network, tmp_path / "m.onnx", example_inputs=samples())
    assert {file.name for file in tmp_path.iterdir()} == {"file", "m.onnx"}


def test_missing_package(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent package is named with the command that installs it."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(MissingDependency, match=r"pip install onnxscript\..*'\.\[onnx\]'"):
        export(network, tmp_path / "m.onnx", example_inputs=samples())


def test_model_that_the_exporter_refuses(tmp_path: Path) -> None:
    """Control flow on data is reported as an ExportError with what to do next."""

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"cannot write Branches as ONNX.*torch\.export\.export"):
        export(Branches(), tmp_path / "m.onnx", example_inputs=samples())
    assert not list(tmp_path.iterdir())
