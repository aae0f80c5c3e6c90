# SPDX-License-Identifier: Apache-2.0
"""The PyTorch blocks of the specification run as written and do what its text says.

Where a block is a sketch (``...`` in place of something of the user's, an indentation that no
interpreter takes) the test fills it in, and shows with what.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nncf

BLOCKS = Path(__file__).parent / "specification"
CONFIG = {
    "input_info": {"sample_size": [1, 1, 28, 28]},
    "compression": {"algorithm": "quantization"},
    "log_dir": "log",
}


class LeNet(nn.Module):
    """The network of the specification's figures (LeCun et al. 1998)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(256, 120)
        self.fc2 = nn.Linear(120, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut, as in ResNet-50, but narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [(4 * width, width, 1), (width, width, 3), (width, 4 * width, 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, padding=k // 2, bias=False) for i, o, k in sizes
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _, outputs, _ in sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = F.relu(y if index < 2 else y + x)
        return y


def resnet50() -> nn.Module:
    """Return a small stand-in for torchvision's network of that name."""
    stem = [nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    return nn.Sequential(*stem, Bottleneck(4), Bottleneck(4), *head)


def run_block(name: str, namespace: dict[str, Any], **filled: str) -> None:
    """Execute a block in ``namespace``; ``blank="…"``, ``filling="…"`` replace its one blank."""
    text = (BLOCKS / f"{name}.py.txt").read_text(encoding="utf-8")
    if filled:
        assert text.count(filled["blank"]) == 1, f"the blank is not in {name}"
        text = text.replace(filled["blank"], filled["filling"])
    exec(compile(text, f"{name}.py.txt", "exec"), namespace)


def batches(shape: tuple[int, ...], classes: int, count: int = 32) -> DataLoader:
    data = TensorDataset(torch.rand(count, *shape), torch.randint(0, classes, (count,)))
    return DataLoader(data, batch_size=8)


@pytest.fixture
def space() -> dict[str, Any]:
    """Return the variables that the blocks take from the user's script."""
    Path("nncf_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    image = torch.rand(1, 1, 28, 28)
    return {
        "model": LeNet(),
        "train_loader": batches((1, 28, 28), 10),
        "criterion": nn.CrossEntropyLoss(),
        "dummy_input": image,
        "example_input": image,
        "path": "checkpoint.pth",
    }


def compress(space: dict[str, Any]) -> None:
    """Run the blocks of steps 2.1 to 2.4."""
    for name in ("imports", "read_config", "register_data", "create"):
        run_block(name, space)


def train(space: dict[str, Any], epochs: int = 1) -> None:
    """Run an ordinary training loop with the blocks of step 2.6 at their places."""
    space["optimizer"] = torch.optim.SGD(space["compressed_model"].parameters(), 0.05)
    for _ in range(epochs):
        run_block("scheduler_epoch_step", space)
        for images, labels in space["train_loader"]:
            run_block("scheduler_step", space)
            output = space["compressed_model"](images)
            space["cross_entropy_loss"] = space["criterion"](output, labels)
            run_block("add_loss", space)
            space["optimizer"].zero_grad()
            space["loss"].backward()
            space["optimizer"].step()


def onnx_output(path: str, image: torch.Tensor) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]


def is_close(deployed: np.ndarray, model: nn.Module, image: torch.Tensor) -> bool:
    """Tell whether an output differs by rounding flips at most."""
    with torch.no_grad():
        trained = model.eval()(image).numpy()
    return float(np.abs(deployed - trained).max()) < 0.02 * float(np.abs(trained).max())


def test_steps_one_to_three_train_a_compressed_model(space: dict[str, Any]) -> None:
    """The five lines give the same model object, quantized, whose weights and ranges train."""
    original = space["model"]
    names = list(original.state_dict())
    compress(space)
    model, controller = space["compressed_model"], space["compression_ctrl"]
    assert model is original
    assert type(model) is LeNet
    assert list(model.state_dict())[: len(names)] == names
    assert len(controller.child_ctrls[0].weight_quantizers) == 4
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(space, epochs=2)
    same = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert same == []
    assert any(name.startswith("compression.") for name in before)
    assert controller.scheduler.current_epoch == 1
    assert controller.scheduler.current_step == 7


def test_the_graphs_are_drawn(space: dict[str, Any]) -> None:
    """The log directory holds both graphs, with the quantizers in the second."""
    compress(space)
    original, compressed = (
        Path(f"log/{name}_graph.dot").read_text(encoding="utf-8")
        for name in ("original", "compressed")
    )
    assert "LeNet/Conv2d[conv2]/conv2d_0" in original
    assert len(compressed) > len(original)


def test_distributed_follows_wrapping(space: dict[str, Any], tmp_path: Path) -> None:
    """With DistributedDataParallel around the model, the call of step 2.5 runs and it trains."""
    compress(space)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(space["compressed_model"])
        space["compressed_model"] = wrapped
        run_block("distributed", space)
        train(space)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.isfinite(space["loss"])


def test_step_four_exports_a_file_that_runs(space: dict[str, Any]) -> None:
    """The exported file computes in ONNX Runtime what the trained model computes."""
    compress(space)
    train(space)
    run_block("export", space)
    output = onnx_output("compressed_model.onnx", space["dummy_input"])
    assert is_close(output, space["compressed_model"], space["dummy_input"])
    size = Path("compressed_model.onnx").stat().st_size
    floats = 4 * sum(p.numel() for p in LeNet().parameters())
    assert size < 0.6 * floats


def test_step_four_strips_for_other_exporters(space: dict[str, Any]) -> None:
    """The stripped model goes through torch.onnx.export and OpenVINO's converter as it is."""
    openvino = pytest.importorskip("openvino")
    compress(space)
    train(space)
    # openvino.tools.mo left OpenVINO with its release 2025; convert_model moved to the top.
    run_block(
        "strip", space, blank="from openvino.tools import mo", filling="import openvino as mo"
    )
    image = space["dummy_input"]
    assert is_close(onnx_output("compressed_model.onnx", image), space["compressed_model"], image)
    compiled = openvino.compile_model(space["ov_model"], "CPU")
    assert is_close(compiled(image.numpy())[0], space["compressed_model"], image)


SKETCH = {"blank": "    ...\n", "filling": "    'optimizer': optimizer.state_dict(),\n"}
LOADING = [
    ("    load_state(compressed_model", "load_state(compressed_model"),
    ("    compressed_model.load_state_dict", "compressed_model.load_state_dict"),
]


def another_process(space: dict[str, Any]) -> dict[str, Any]:
    """Return what a new process starts with: fresh weights, the same files and data."""
    fresh = {"model": LeNet(), "path": space["path"], "train_loader": space["train_loader"]}
    fresh["criterion"] = space["criterion"]
    for name in ("imports", "read_config", "register_data"):
        run_block(name, fresh)
    return fresh


def outputs(space: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return space["compressed_model"].eval()(space["train_loader"].dataset.tensors[0])


@pytest.mark.parametrize(("indented", "line"), LOADING, ids=["load_state", "load_state_dict"])
def test_saving_and_loading(space: dict[str, Any], indented: str, line: str) -> None:
    """After save and load in another process the model computes the same bits, as both lines do."""
    compress(space)
    train(space)
    run_block("saving_save", {**space, "model": LeNet()}, **SKETCH)  # the block from its start
    save_checkpoint(space)
    loaded = another_process(space)
    other = next(o for o, _ in LOADING if o != indented)
    text = (BLOCKS / "saving_load.py.txt").read_text(encoding="utf-8")
    kept = [row for row in text.splitlines(keepends=True) if not row.startswith((other, "    #"))]
    exec("".join(kept).replace(indented, line), loaded)
    assert torch.equal(outputs(loaded), outputs(space))
    scheduler = loaded["compression_ctrl"].scheduler
    assert scheduler.current_epoch == space["compression_ctrl"].scheduler.current_epoch == 0
    assert scheduler.current_step == 3


def save_checkpoint(space: dict[str, Any]) -> None:
    """Run the rest of the block that saves, on the model that has trained since."""
    text = (BLOCKS / "saving_save.py.txt").read_text(encoding="utf-8")
    rest = text[text.index("checkpoint = {") :].replace(SKETCH["blank"], SKETCH["filling"])
    exec(rest, space)


def test_saving_and_loading_with_the_deprecated_calls(space: dict[str, Any]) -> None:
    """The deprecated way loads the same model too, with a warning."""
    compress(space)
    space["optimizer"] = torch.optim.SGD(space["compressed_model"].parameters(), 0.05)
    run_block("saving_deprecated_save", {**space, "model": (m := LeNet())}, **SKETCH)
    loaded = another_process(space)
    with pytest.warns(DeprecationWarning, match="resuming_state_dict"):
        run_block("saving_deprecated_load", loaded)
    assert torch.equal(outputs(loaded), outputs({**space, "compressed_model": m}))


def test_ignored_scopes_of_the_example(space: dict[str, Any]) -> None:
    """Outputs of all relus and the weight of conv2 stay unquantized, as the text says."""
    compress(space)
    names = {insert.name for insert in space["compressed_model"].compression.layout}
    assert {name for name in names if "relu" in name}
    config = {**CONFIG, "compression": {"algorithm": "quantization"}}
    config["compression"]["ignored_scopes"] = ["{re}.*RELU.*", "LeNet/NNCFConv2d[conv2]"]
    for where in ("algorithm", "global"):
        if where == "global":
            scopes = config["compression"].pop("ignored_scopes")
            config = {**config, "ignored_scopes": scopes}
        checked = nncf.NNCFConfig.from_dict(config)
        _, model = nncf.create_compressed_model(LeNet(), checked)
        found = {insert.name for insert in model.compression.layout}
        assert not {name for name in found if "relu" in name}
        weights = {name for name in found if name.endswith("|WEIGHT")}
        assert len(weights) == 3
        assert not [name for name in weights if "conv2]" in name]


def test_a_registered_module_is_compressed() -> None:
    """The weight of a custom module is quantized before it takes part in forward."""
    text = (BLOCKS / "register_module.py.txt").read_text(encoding="utf-8")
    sketch = {
        "ignored_algorithms=[...]": "ignored_algorithms=[]",
        "(self, ...):\n": "(self, size):\n        super().__init__()\n",
        "Parameter(...)": "Parameter(torch.randn(size, size))",
        "    # ...\n": "    def forward(self, x):\n"
        "        return torch.nn.functional.linear(x, self.weight)\n",
    }
    for blank, filling in sketch.items():
        assert text.count(blank) == 1
        text = text.replace(blank, filling)
    for ignored, expected in (("[]", 1), ('["quantization"]', 0)):
        space: dict[str, Any] = {"torch": torch}
        exec(text.replace("ignored_algorithms=[]", f"ignored_algorithms={ignored}"), space)
        config = {"input_info": {"sample_size": [1, 4]}, "compression": CONFIG["compression"]}
        controller, model = nncf.create_compressed_model(
            nn.Sequential(space["MyModule"](4), nn.ReLU()), nncf.NNCFConfig.from_dict(config)
        )
        assert len(controller.child_ctrls[0].weight_quantizers) == expected
        levels = model.eval().compression.ops if expected else {}
        assert len([name for name in levels if name.endswith("|WEIGHT")]) == expected


def test_the_block_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's script runs from import to the exported file and the saved weights."""
    stand_in = types.ModuleType("torchvision.models.resnet")
    stand_in.resnet50 = resnet50
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.models.resnet", stand_in)
    config = {**CONFIG, "input_info": {"sample_size": [1, 3, 32, 32]}}
    Path("resnet50_int8.json").write_text(json.dumps(config), encoding="utf-8")
    space = {"train_loader": batches((3, 32, 32), 5), "loss_criterion": nn.CrossEntropyLoss()}
    run_block("readme", space)
    saved = torch.load("compressed_model.pth")
    assert saved.keys() == space["compressed_model"].state_dict().keys()
    image = torch.rand(1, 3, 32, 32)
    assert is_close(onnx_output("compressed_model.onnx", image), space["compressed_model"], image)
