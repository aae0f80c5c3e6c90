# SPDX-License-Identifier: Apache-2.0
"""Algorithms together: every pair that makes sense, and the usual triples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from tests.contract.cases import Batches
from tests.contract.comparing import call, near, same
from tests.contract.models import EXAMPLES

EXAMPLE = EXAMPLES["residual"]
SECTIONS: dict[str, dict[str, Any]] = {
    "int8": {"algorithm": "quantization"},
    "magnitude": {
        "algorithm": "magnitude_sparsity",
        "params": {"sparsity_target": 0.5, "sparsity_target_epoch": 1, "sparsity_freeze_epoch": 5},
    },
    "rb": {
        "algorithm": "rb_sparsity",
        "params": {"sparsity_target": 0.5, "sparsity_target_epoch": 1, "sparsity_freeze_epoch": 5},
    },
    "const": {"algorithm": "const_sparsity"},
    "pruning": {
        "algorithm": "filter_pruning",
        "params": {"pruning_target": 0.5, "pruning_steps": 2, "channel_multiple": 2,
                   "prune_first_conv": True},
    },
    "binary": {"algorithm": "binarization", "ignored_scopes": ["{re}stem"]},
    "teacher": {"algorithm": "knowledge_distillation", "type": "softmax"},
}  # fmt: skip
BESIDE_BINARY = {"target_scopes": ["{re}(stem|head)"]}
SPARSITIES = ("magnitude", "rb", "const")
TOGETHER = [
    *[("int8", name) for name in ("magnitude", "rb", "const", "pruning", "teacher")],
    *[("pruning", name) for name in (*SPARSITIES, "teacher")],
    *[(name, "teacher") for name in SPARSITIES],
    *[("pruning", name, "int8") for name in (*SPARSITIES, "teacher")],
    *[(name, "int8", "teacher") for name in SPARSITIES],
    ("pruning", "magnitude", "int8", "teacher"),
    *[("binary", name) for name in ("int8", "pruning", "teacher", *SPARSITIES)],
    *[(*names, "binary") for names in (("int8",), ("pruning", "int8"), ("int8", "teacher"))],
    *[(name, "binary", "int8") for name in SPARSITIES],
    ("pruning", "binary", "int8", "teacher"),
]
together = pytest.mark.parametrize("names", TOGETHER, ids=["+".join(names) for names in TOGETHER])


def fresh(names: tuple[str, ...]) -> nn.Module:
    """Return the example, with zeros where they are to be kept."""
    model = EXAMPLE.fresh()
    if "const" in names:
        with torch.no_grad():
            model.inner.weight[:, ::2] = 0
            model.head.weight[:, ::2] = 0
            model.stem.weight[:4] = 0
    return model


def compress(names: tuple[str, ...], state: Any = None) -> tuple[Any, nn.Module]:
    sections = [
        SECTIONS[name] | (BESIDE_BINARY if "binary" in names and name in SPARSITIES else {})
        for name in names
    ]
    text = {"input_info": EXAMPLE.input_info, "compression": sections}
    config = nncf.register_default_init_args(nncf.NNCFConfig.from_dict(text), Batches(EXAMPLE))
    found: tuple[Any, nn.Module] = nncf.create_compressed_model(
        fresh(names), config, compression_state=state, dump_graphs=False
    )
    return found


def train(controller: Any, model: nn.Module, steps: range) -> list[torch.Tensor]:
    """Train the numbered steps, two to an epoch; return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in steps:
        if step % 2 == 0:
            controller.scheduler.epoch_step()
        controller.scheduler.step()
        model.train()
        torch.manual_seed(step)  # of the model's dropout
        args, kwargs = EXAMPLE.batch(step)
        loss = nn.functional.cross_entropy(model(*args, **kwargs), torch.arange(4) % 3)
        loss = loss + controller.loss()
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@together
def test_trains_and_resumes_to_the_bit(names: tuple[str, ...]) -> None:
    """Training stopped in the middle and resumed from its state repeats every bit."""
    controller, model = compress(names)
    train(controller, model, range(3))
    weights, state = copy.deepcopy(model.state_dict()), controller.get_compression_state()
    expected = train(controller, model, range(3, 6))
    again, twin = compress(names, state)
    nncf.load_state(twin, weights, is_resume=True)
    assert same(train(again, twin, range(3, 6)), expected)
    assert same(twin.state_dict(), model.state_dict())
    assert again.get_compression_state() == controller.get_compression_state()


@together
def test_strips_and_exports(names: tuple[str, ...], tmp_path: Path) -> None:
    """The stripped model computes what the compressed one does, and so does the file."""
    controller, model = compress(names)
    train(controller, model, range(6))
    with torch.no_grad():  # a few steps do not bring the logits of RB sparsity below zero
        for name, parameter in model.named_parameters():
            if name.endswith(".logits"):
                parameter.flatten()[::2] = -5
    expected = call(model.eval(), EXAMPLE)
    stripped = controller.strip()
    assert near(call(stripped, EXAMPLE), expected)
    original = sum(p.numel() for p in EXAMPLE.fresh().parameters())
    left = sum(p.numel() for p in stripped.parameters())
    zeros = sum(int((p == 0).sum()) for p in stripped.parameters() if p.dim() > 1)
    assert (left < original) == ("pruning" in names)
    assert {"int8", "binary"} & set(names) or not hasattr(stripped, "compression")
    assert zeros > 20 or not set(names) & set(SPARSITIES)
    pytest.importorskip("onnxruntime")
    report = controller.export_model(str(tmp_path / "model.onnx"))  # raises where it differs
    assert report.outputs
    assert controller.statistics().to_str()


@pytest.mark.parametrize("first", SPARSITIES)
@pytest.mark.parametrize("second", SPARSITIES)
def test_sparsities_exclude_each_other(first: str, second: str) -> None:
    """Two sparsities in one configuration are refused when it is read, with the reason."""
    text = {"compression": [SECTIONS[first], SECTIONS[second]]}
    reason = "configured already" if first == second else "decides which single weights are zero"
    with pytest.raises(nncf.ConfigError, match=reason):
        nncf.NNCFConfig.from_dict(text)
