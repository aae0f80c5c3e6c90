# SPDX-License-Identifier: Apache-2.0
"""Bit widths from second derivatives: the choice, what it writes and what it leaves behind."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from tests.algorithms.mixed_precision.mixed import (
    CONV2,
    HAWQ,
    LINEAR,
    SIZES,
    Branching,
    compress,
    data,
    traces,
    weight_bytes,
    weight_widths,
    widths,
)
from tests.torch.test_distributed import two_processes


def test_sensitive_layers_get_more_bits() -> None:
    """Where only one layer has a large trace, that layer gets the wide weights."""
    for sensitive, name in (("conv2", CONV2), ("linear", LINEAR)):
        path = traces(
            **{n: 1e3 if n == sensitive else 1e-3 for n in ("conv1", "conv2", "conv3", "linear")}
        )
        precision = {**HAWQ, "bits": [4, 8], "traces_per_layer_path": path}
        budget = {"type": "bytes", "value": SIZES[name] * 4 / 8 + sum(SIZES.values()) * 4 / 8}
        _, model = compress({**precision, "budget": budget})
        assert weight_widths(model) == {n: 8 if n == name else 4 for n in SIZES}


def test_the_whole_search_leaves_a_model_as_it_was(trained: nn.Module) -> None:
    """Weights, gradients, flags and random streams are those of before; the same again is the same."""
    twin = copy.deepcopy(trained)
    gradients = [parameter.grad.clone() for parameter in trained.parameters()]
    before, random = copy.deepcopy(trained.state_dict()), torch.get_rng_state()
    precision = {**HAWQ, "bits": [4, 8], "compression_ratio": 1.3}
    _, model = compress(precision, model=trained)
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(5)
    _, again = compress(precision, model=twin)
    assert widths(model) == widths(again)
    assert set(weight_widths(model).values()) == {4, 8}
    state = model.state_dict()
    same = [name for name in before if "norm.running" not in name and "batches" not in name]
    assert all(torch.equal(state[name], before[name]) for name in same)
    own = [parameter for name, parameter in model.named_parameters() if name in before]
    assert all(torch.equal(p.grad, g) for p, g in zip(own, gradients, strict=True))
    assert all(parameter.requires_grad for parameter in own)
    assert model.training
    assert all(
        op.initialized and op.enabled and op.observer is None
        for op in model.compression.ops.values()
    )


def test_the_ratio_is_kept_and_activations_follow(trained: nn.Module) -> None:
    """Products cost 8 / ratio of INT8's at most; activations have the least width of their layers."""
    _, model = compress({**HAWQ, "bits": [4, 8], "compression_ratio": 1.3}, model=trained)
    found = widths(model)
    conv1, conv2, conv3, linear = (found[n.removeprefix("Branching/")] for n in SIZES)
    incoming = {
        "conv1": found["/nncf_model_input_0|OUTPUT"],
        "conv": found["relu_0|OUTPUT"],
        "linear": found["mean_0|OUTPUT"],
    }
    assert incoming == {"conv1": conv1, "conv": min(conv2, conv3), "linear": linear}
    work = {"conv1": 108 * 64, "conv2": 288 * 64, "conv3": 32 * 64, "linear": 40}
    spent = work["conv1"] * max(conv1, incoming["conv1"]) + work["linear"] * linear
    spent += work["conv2"] * max(conv2, incoming["conv"]) + work["conv3"] * max(
        conv3, incoming["conv"]
    )
    assert 8 * sum(work.values()) / spent >= 1.3


def test_settled_activations_stay(trained: nn.Module) -> None:
    """Bits that a group settles are kept, and the others are chosen around them."""
    budget = {"type": "bytes", "value": sum(SIZES.values()) * 5 / 8}
    precision = {**HAWQ, "bits": [2, 4, 8], "budget": budget}
    _, model = compress(precision, model=trained, activations={"bits": 8})
    assert {i.op.bits for i in model.compression.layout if not i.op.weight} == {8}
    assert weight_bytes(model) <= budget["value"]
    assert len(set(weight_widths(model).values())) > 1


def test_the_plan_can_be_edited_and_fed_back(trained: nn.Module) -> None:
    """bitwidth_per_scope.json holds all widths, and as manual's option gives the same model."""
    twin = copy.deepcopy(trained)
    precision = {**HAWQ, "bits": [2, 4, 8], "compression_ratio": 2}
    _, model = compress(precision, model=trained)
    plan = json.loads(Path("bitwidth_per_scope.json").read_text())
    assert {name.removeprefix("Branching/"): bits for bits, name in plan["bitwidth_per_scope"]} == (
        widths(model)
    )
    _, again = compress({"bitwidth_per_scope": "bitwidth_per_scope.json"}, model=twin)
    assert widths(again) == widths(model)
    plan["bitwidth_per_scope"] = [
        [5 if name == CONV2 else b, name] for b, name in plan["bitwidth_per_scope"]
    ]
    _, edited = compress({"bitwidth_per_scope": plan["bitwidth_per_scope"]})
    assert weight_widths(edited) == {**weight_widths(model), CONV2: 5}


def test_a_resumed_run_never_searches_again(trained: nn.Module) -> None:
    """The widths come from the compression state, without data, criterion or files."""
    precision = {**HAWQ, "bits": [4, 8], "compression_ratio": 1.3}
    controller, model = compress(precision, model=trained)
    state = controller.get_compression_state()
    Path("bitwidth_per_scope.json").unlink()
    _, again = compress(precision, state=state, registered={})
    assert widths(again) == widths(model)
    assert not Path("bitwidth_per_scope.json").exists()


def test_staged_and_strict_on_a_device(trained: nn.Module) -> None:
    """On VPU in strict mode each layer has the width of its input, and the staged schedule runs."""
    precision = {**HAWQ, "bits": [4, 8], "bitwidth_assignment_mode": "strict"}
    budget = {"type": "bit_operations", "value": 60 * sum((108 * 64, 288 * 64, 32 * 64, 40))}
    staged = {"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 2}
    controller, model = compress(
        {**precision, "budget": budget}, model=trained, device="VPU", params=staged
    )
    found = widths(model)
    by_layer = [found[name.removeprefix("Branching/")] for name in SIZES]
    assert by_layer[0] == found["/nncf_model_input_0|OUTPUT"]
    assert by_layer[1] == by_layer[2] == found["relu_0|OUTPUT"]
    assert sorted(set(by_layer)) == [4, 8]
    learning = {(i.op.bits, i.op.scaled_gradient) for i in model.compression.layout}
    assert learning == {(4, True), (8, False)}  # each at the pace of its own width
    for _ in range(3):
        controller.scheduler.epoch_step()
    assert all(op.enabled for op in model.compression.ops.values())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("algorithm", ["binarization", "magnitude_sparsity", "filter_pruning"])
def test_other_algorithms_may_stand_beside_it(algorithm: str, first: bool) -> None:
    """Widths are chosen for what other algorithms leave to quantization, in either order."""
    others: dict[str, dict[str, Any]] = {
        "binarization": {"target_scopes": ["{re}conv2]"]},
        "magnitude_sparsity": {"sparsity_init": 0.3},
        "filter_pruning": {"params": {"channel_multiple": 2, "prune_first_conv": True}},
    }
    precision = {**HAWQ, "bits": [4, 8], "compression_ratio": 1.2}
    sections = [
        {"algorithm": algorithm, **others[algorithm]},
        {"algorithm": "quantization", "initializer": {"precision": precision}},
    ]
    text = {
        "input_info": {"sample_size": [1, 3, 8, 8]},
        "target_device": "TRIAL",
        "compression": sections if first else sections[::-1],
    }
    found = nncf.NNCFConfig.from_dict(text)
    nncf.register_default_init_args(found, data(), criterion=nn.CrossEntropyLoss())
    torch.manual_seed(0)
    controller, model = nncf.create_compressed_model(Branching(), found, dump_graphs=False)
    quantized = [
        i for i in model.compression.layout if i.op.algorithm == "quantization" and i.op.weight
    ]
    assert {i.op.bits for i in quantized} == {4, 8}
    assert len(quantized) == (3 if algorithm == "binarization" else 4)
    controller.strip()(torch.rand(1, 3, 8, 8))


def test_branches_that_the_data_does_not_take_keep_wide_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A layer that no registered batch reaches counts as sensitive, with a warning."""

    class Forked(Branching):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.conv1(x)))
            x = self.conv2(x) + (self.conv3(x) if len(x) == 1 else 0.0)
            return self.linear(x.mean(dim=(2, 3)))

    torch.manual_seed(0)
    budget = {"type": "bytes", "value": (32 * 8 + 436 * 5) / 8}
    _, model = compress({**HAWQ, "bits": [4, 8], "budget": budget}, model=Forked())
    assert weight_widths(model)["Forked/Conv2d[conv3]/conv2d_0|WEIGHT"] == 8
    assert any("No value reached 1 weights" in r.getMessage() for r in caplog.records)


def test_the_data_of_a_choice_is_dumped(trained: nn.Module) -> None:
    """Traces, a table of costs and a plot are written, and the traces can be used again."""
    pytest.importorskip("matplotlib")
    precision = {**HAWQ, "bits": [4, 8], "compression_ratio": 1.3}
    twin = copy.deepcopy(trained)
    _, model = compress({**precision, "dump_init_precision_data": True}, model=trained)
    assert Path("bitwidths.png").read_bytes().startswith(b"\x89PNG")
    with Path("bitwidth_costs.csv").open() as file:
        rows = {row["weight"]: row for row in csv.DictReader(file)}
    assert {name: int(row["bits"]) for name, row in rows.items()} == weight_widths(model)
    assert float(rows[CONV2]["error at 4 bits"]) > float(rows[CONV2]["error at 8 bits"]) > 0
    _, again = compress({**precision, "traces_per_layer_path": "traces_per_layer.json"}, model=twin)
    assert widths(again) == widths(model)


def test_processes_agree_on_the_widths() -> None:
    """With other data on each process all have the widths of the first, and one file is written."""
    printed = two_processes(
        """
        import os
        import nncf
        from tests.algorithms.mixed_precision.mixed import Branching, config, widths

        os.makedirs(str(rank))
        os.chdir(str(rank))
        torch.manual_seed(0)
        model = Branching()
        torch.manual_seed(rank)
        loader = [(torch.rand(8, 3, 8, 8), torch.randint(0, 5, (8,))) for _ in range(2)]
        found = config({"type": "hawq", "iter_number": 10, "compression_ratio": 1.6})
        nncf.register_default_init_args(found, loader, criterion=nn.CrossEntropyLoss())
        nncf.create_compressed_model(model, found, dump_graphs=False)
        print(sorted(widths(model).items()), os.listdir())
        """
    )
    (first, files), (second, none) = (text.rsplit("[", 1) for text in printed)
    assert first == second
    assert "bitwidth_per_scope.json" in files
    assert none == "]"
