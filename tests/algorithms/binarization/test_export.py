# SPDX-License-Identifier: Apache-2.0
"""Deployed files of binarized models: what they hold, what runtimes compute, what is proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nncf
from nncf.torch import fake_quantize_calls
from tests.algorithms.binarization.test_binarization import Data

pytest.importorskip("onnxruntime")
X = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
RUNTIMES = {"onnx": "model.onnx", "onnx_fakequantize": "model.onnx", "openvino": "model.xml"}


class Blocks(nn.Module):
    """A stem, a block called twice, a depthwise convolution, one over a sequence, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 64, 3, bias=False)
        self.sequence = nn.Conv1d(64, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.block(self.block(x)) + x
        x = torch.relu(self.wide(torch.relu(self.depthwise(x))))
        return self.head(torch.relu(self.sequence(x.flatten(2))).mean(2))


def trained(*others: dict[str, Any], mode: str = "xnor") -> tuple[Any, nn.Module]:
    """Return a model after a step, with batch norms that turn some channels round."""
    section = {"algorithm": "binarization", "mode": mode, "ignored_scopes": ["{re}stem"]}
    config = nncf.NNCFConfig.from_dict({"compression": [section, *others]})
    nncf.register_default_init_args(config, Data())
    torch.manual_seed(0)
    model = Blocks()
    with torch.no_grad():
        model.block[1].weight[::3] = -0.7
        model.block[1].bias[::3] = 0.5
    controller, model = nncf.create_compressed_model(model, config, dump_graphs=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()(X.repeat(4, 1, 1, 1)).square().sum().backward()
    optimizer.step()
    return controller, model.eval()


@pytest.mark.parametrize("mode", ["xnor", "dorefa"])
@pytest.mark.parametrize("form", RUNTIMES)
def test_files_compute_what_the_model_computes(form: str, mode: str, tmp_path: Path) -> None:
    """Each runtime gives the trained model's output, and every binarizer was compared on the way."""
    if form != "onnx":
        pytest.importorskip("openvino")
    controller, _ = trained(mode=mode)
    report = controller.export_model(str(tmp_path / RUNTIMES[form]), form)
    assert report.ok
    assert report.outputs[0].deviation < 1e-4
    watched = [layer.name for layer in report.layers if layer.levels is not None]
    assert len(watched) == 5  # the block is called twice
    assert len({name for name in watched if "block" in name}) == 1


def test_the_file_holds_bits(tmp_path: Path) -> None:
    """Each binarized weight takes a bit, but where that is not smaller."""
    onnx = pytest.importorskip("onnx")
    controller, _ = trained()
    controller.export_model(str(tmp_path / "model.onnx"))
    stored = {i.name: i.dims for i in onnx.load(tmp_path / "model.onnx").graph.initializer}
    bits = {name: int(np.prod(dims)) for name, dims in stored.items() if name.endswith(".bits")}
    assert sorted(bits.values()) == [16 * 16 * 9 // 8, 64 * 16 * 3 // 8, 64 * 16 * 9 // 8]
    assert not [n for n, d in stored.items() if int(np.prod(d)) >= 2000]


def test_openvino_runs_on_bits_and_stores_them(tmp_path: Path) -> None:
    """The intermediate representation holds a bit per weight, and binary convolutions run."""
    openvino = pytest.importorskip("openvino")
    controller, _ = trained()
    controller.export_model(str(tmp_path / "model.xml"))
    core = openvino.Core()
    model = core.read_model(tmp_path / "model.xml")
    types = [op.get_element_type().get_type_name() for op in model.get_ops()
             if op.get_type_name() == "Constant"]  # fmt: skip
    assert types.count("u1") == 3  # the block is called twice
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        str(op.get_rt_info()["layerType"].value) for op in compiled.get_runtime_model().get_ops()
    ]
    assert kinds.count("BinaryConvolution") == 3


@pytest.mark.parametrize("form", RUNTIMES)
def test_with_int8_around(form: str, tmp_path: Path) -> None:
    """Quantizers and binarizers of one model are written, and proven, together."""
    if form != "onnx":
        pytest.importorskip("openvino")
    controller, _ = trained({"algorithm": "quantization"})
    report = controller.export_model(str(tmp_path / RUNTIMES[form]), form)
    names = [layer.name for layer in report.layers if layer.levels is not None]
    assert any(name.endswith("BINARY") for name in names)
    assert any(not name.endswith("BINARY") for name in names)


def test_a_wrong_switch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose values differ at a binarizer is refused, and the message names the binarizer."""
    controller, _ = trained()
    real = fake_quantize_calls.compare_levels

    def compare(name: str, trained: Any, deployed: Any, *, scale: Any) -> Any:
        return real(name, trained, 1 - deployed if "wide" in name else deployed, scale=scale)

    monkeypatch.setattr(fake_quantize_calls, "compare_levels", compare)
    with pytest.raises(nncf.ParityError, match=r"Conv2d\[wide\]"):
        controller.export_model(str(tmp_path / "model.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_packed_checkpoints_take_a_bit(tmp_path: Path) -> None:
    """A packed checkpoint has a bit for each binarized weight, and every bit comes back."""
    for mode in ("xnor", "dorefa"):
        controller, _ = trained(mode=mode)
        stripped = controller.strip()
        table = nncf.torch.save_packed(stripped, tmp_path / f"{mode}.safetensors")
        stored = {row.name: row.packed for row in table.rows}
        weight = stripped.wide.weight
        magnitudes = 64 if mode == "xnor" else 1
        assert stored["wide.weight"] == weight.numel() // 8 + magnitudes * 2 * 4
        state = nncf.torch.load_packed(tmp_path / f"{mode}.safetensors")
        assert torch.equal(state["wide.weight"], weight)
