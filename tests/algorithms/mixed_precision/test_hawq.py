# SPDX-License-Identifier: Apache-2.0
"""Bit widths from second derivatives: the choice, what it writes, leaves behind and refuses."""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nncf.errors import ConfigError, DataError, LevelError, MissingDependency
from tests.algorithms.mixed_precision.mixed import Branching, compress, config, data, widths
from tests.torch.test_distributed import two_processes

HAWQ = {"type": "hawq", "iter_number": 12, "num_data_points": 16}
CONV1, CONV2, CONV3, LINEAR = (
    f"Branching/{name}|WEIGHT"
    for name in (
        *("Conv2d[conv1]/conv2d_0", "Conv2d[conv2]/conv2d_0", "Conv2d[conv3]/conv2d_0"),
        "Linear[linear]/linear_0",
    )
)
SIZES = {CONV1: 108, CONV2: 288, CONV3: 32, LINEAR: 40}


@pytest.fixture
def trained() -> nn.Module:
    """A network near a minimum, where the Hessian tells something."""
    torch.manual_seed(0)
    model = Branching()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        for images, labels in data():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model


def traces(**values: float) -> str:
    """Write a file of traces for the four layers; return its path."""
    names = {"conv1": CONV1, "conv2": CONV2, "conv3": CONV3, "linear": LINEAR}
    content = {names[name]: value for name, value in values.items()}
    Path("traces.json").write_text(json.dumps(content))
    return "traces.json"


def weight_widths(model: Any) -> dict[str, int]:
    return {i.name: i.op.bits for i in model.compression.layout if i.op.weight}


def weight_bytes(model: Any) -> float:
    return sum(SIZES[name] * bits for name, bits in weight_widths(model).items()) / 8


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


def test_latency_comes_from_a_table() -> None:
    """Milliseconds are read from a table, by weight or by weight and activation."""
    table = {
        CONV1.removesuffix("|WEIGHT"): {"4": 1, "8": 2},
        CONV2: {"4/4": 3, "4/8": 4, "8/8": 9, "8/4": 9},
        CONV3: {"4": 1, "8": 5},
        LINEAR: {"4": 1, "8": 2},
    }
    Path("latency.json").write_text(json.dumps(table))
    path = traces(conv1=1.0, conv2=1.0, conv3=1.0, linear=1.0)
    precision = {**HAWQ, "bits": [4, 8], "traces_per_layer_path": path}
    budget = {"type": "latency", "value": 6, "table": "latency.json"}
    _, model = compress({**precision, "budget": budget})
    assert set(weight_widths(model).values()) == {4}
    with pytest.raises(LevelError, match=r"nearest possible is 6\.0 ms"):
        compress({**precision, "budget": {**budget, "value": 5.9}})
    del table[CONV2]["8/8"]
    Path("latency.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"conv2.*8/8"):
        compress({**precision, "budget": budget})
    del table[CONV3]
    Path("latency.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"conv2|no layer .*conv3"):
        compress({**precision, "budget": budget})


@pytest.mark.parametrize(
    ("precision", "rest", "error", "words"),
    [
        ({"bits": [4, 8]}, {"device": "ANY"}, ConfigError, "leaves nothing to choose.*TRIAL"),
        ({"bits": [4, 8]}, {"weights": {"bits": 8}}, ConfigError, "leaves nothing to choose"),
        ({"bits": [4]}, {}, ConfigError, "leaves nothing to choose"),
        ({"compression_ratio": 5}, {}, LevelError, r"ratio=5\. Should be within range \[1, 4\]"),
        (
            {"budget": {"type": "bytes", "value": 10}},
            {},
            LevelError,
            r"costs 10\.0 bytes or less. The nearest possible is 117\.0 bytes",
        ),
        ({}, {"registered": {}}, DataError, "no criterion is registered"),
        ({"traces_per_layer_path": "none.json"}, {}, ConfigError, "none.json.*cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    precision: Any, rest: Any, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistakes are errors that say what is possible, before a derivative is computed."""
    from nncf.torch import initialize

    def never(*_arguments: Any) -> Any:
        raise AssertionError("the traces were computed")

    monkeypatch.setattr(initialize, "average_traces", never)
    model = Branching()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        compress({**HAWQ, **precision}, model=model, **rest)
    assert model.state_dict().keys() == before.keys()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"budget": {"type": "latency", "value": 3}}, "no kernels for fewer than 8 bits"),
        ({"budget": {"type": "bytes", "value": 3, "table": "a"}}, "only with"),
        ({"budget": {"type": "bytes", "value": 3}, "compression_ratio": 2}, "remove the other"),
        ({"bits": []}, "bits"),
        ({"bits": [4, 9]}, r"bits\[1\] = 9"),
    ],
)
def test_contradictory_options_are_refused(section: Any, words: str) -> None:
    """Two limits at once, latencies that nobody measured, and impossible bits are errors."""
    with pytest.raises(ConfigError, match=words):
        config({**HAWQ, **section})


def test_fewer_choices_than_asked_for_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Where a device lacks some of the bits, a warning says where and what there is."""
    caplog.set_level(logging.WARNING, "nncf")
    path = traces(conv1=1.0, conv2=1.0, conv3=1.0, linear=1.0)
    precision = {**HAWQ, "bits": [2, 4, 8], "traces_per_layer_path": path}
    _, model = compress({**precision, "compression_ratio": 1.5}, device="VPU")
    (line,) = [r.getMessage() for r in caplog.records if "cannot be had" in r.getMessage()]
    assert f"1 of 4 weights have fewer choices ({LINEAR}: [4, 8])" in line
    assert min(weight_widths(model).values()) < 8


def test_a_limit_that_limits_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A budget that the widest bits meet leaves them everywhere, with a warning."""
    path = traces(conv1=1.0, conv2=1.0, conv3=1.0, linear=1.0)
    precision = {**HAWQ, "bits": [4, 8], "traces_per_layer_path": path}
    _, model = compress({**precision, "budget": {"type": "bytes", "value": 1e6}})
    assert set(weight_widths(model).values()) == {8}
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any("keeps the widest of its bits (468.0 bytes)" in line for line in warnings)


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


def test_frozen_weights_keep_eight_bits(trained: nn.Module) -> None:
    """A frozen weight is left at 8 bits, the others make up for it."""
    trained.conv2.weight.requires_grad_(False)
    budget = {"type": "bytes", "value": (288 * 8 + 180 * 5) / 8}
    _, model = compress({**HAWQ, "bits": [4, 8], "budget": budget}, model=trained)
    assert weight_widths(model)[CONV2] == 8
    assert not model.conv2.weight.requires_grad
    assert weight_bytes(model) <= budget["value"]


def test_an_untrained_direction_is_not_taken_for_sensitivity() -> None:
    """Traces below zero count as nearly nothing; where all are, an error says to train first."""
    path = traces(conv1=-5.0, conv2=1.0, conv3=1.0, linear=1.0)
    precision = {**HAWQ, "bits": [4, 8], "traces_per_layer_path": path}
    _, model = compress(
        {**precision, "budget": {"type": "bytes", "value": (108 * 4 + 360 * 8) / 8}}
    )
    assert weight_widths(model)[CONV1] == 4
    path = traces(conv1=-5.0, conv2=-1.0, conv3=-1.0, linear=0.0)
    with pytest.raises(DataError, match="Expected a trained model"):
        compress({**precision, "compression_ratio": 1.3})


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, 2]", '"text"', "[1, 2, 3, NaN]", "[1, 2, 3"])
def test_traces_that_do_not_fit_are_refused(content: str) -> None:
    """A file without one number for each weight is refused with what was expected."""
    Path("traces.json").write_text(content)
    with pytest.raises(ConfigError, match=r"traces\.json.*Expected one number for each of the 4"):
        compress({**HAWQ, "traces_per_layer_path": "traces.json"})


def test_traces_may_be_a_tensor() -> None:
    """A tensor saved by PyTorch is read in the order of execution."""
    torch.save(torch.tensor([[1e-3, 1e3, 1e-3, 1e-3]]), "traces.pt")
    budget = {"type": "bytes", "value": (288 * 8 + 180 * 4) / 8}
    precision = {**HAWQ, "bits": [4, 8], "traces_per_layer_path": "traces.pt", "budget": budget}
    _, model = compress(precision)
    assert weight_widths(model) == {n: 8 if n == CONV2 else 4 for n in SIZES}


def test_plots_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib dump_init_precision_data is refused before the search, with the command."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    with pytest.raises(MissingDependency, match="pip install matplotlib"):
        compress({**HAWQ, "dump_init_precision_data": True})


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
