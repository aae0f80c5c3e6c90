# SPDX-License-Identifier: Apache-2.0
"""Bit widths given by scope: which quantizers get them, and what is refused before anything runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.algorithms.mixed_precision.mixed import Branching, compress, config, widths

CONV2 = "Conv2d[conv2]/conv2d_0"


def given(entries: Any, **rest: Any) -> dict[str, int]:
    """Return the widths of a model compressed with these entries that differ from 8 bits."""
    _, model = compress({"bitwidth_per_scope": entries}, **rest)
    for insert in model.compression.layout:
        assert model.compression.ops[insert.name].scheme == insert.op
    return {name: bits for name, bits in widths(model).items() if bits != 8}


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (f"Branching/{CONV2}|WEIGHT", [f"{CONV2}|WEIGHT"]),
        ("Branching/NNCFConv2d[conv2]/conv2d_0|WEIGHT", [f"{CONV2}|WEIGHT"]),
        (f"TargetType.OPERATION_WITH_WEIGHTS Branching/{CONV2}|WEIGHT", [f"{CONV2}|WEIGHT"]),
        ("Branching/Conv2d[conv2]", [f"{CONV2}|WEIGHT", f"{CONV2}|OUTPUT"]),
        ("{re}conv[23]]|WEIGHT", [f"{CONV2}|WEIGHT", "Conv2d[conv3]/conv2d_0|WEIGHT"]),
        ("{re}conv2].*WEIGHT", [f"{CONV2}|WEIGHT"]),
        ("{re}conv1.*/conv2d_0$", ["Conv2d[conv1]/conv2d_0|WEIGHT"]),
        ("/nncf_model_input_0|OUTPUT", ["/nncf_model_input_0|OUTPUT"]),
        ("Branching/Conv2d[conv1]/conv2d_0|INPUT0", ["/nncf_model_input_0|OUTPUT"]),
        ("Branching/RELU_0", ["relu_0|OUTPUT"]),
        (f"Branching/{CONV2}|INPUT0", ["relu_0|OUTPUT"]),
    ],
)
def test_an_entry_means_the_quantizers_it_names(scope: str, expected: list[str]) -> None:
    """A scope with an ending means one quantizer, without one those of weight and output."""
    assert given([[4, scope]]) == dict.fromkeys(expected, 4)


def test_bits_of_a_group_are_for_quantizers_that_no_entry_names() -> None:
    """weights.bits is what weights without an entry get, and an entry wins over it."""
    found = given([[8, f"Branching/{CONV2}|WEIGHT"], [6, "{re}linear"]], weights={"bits": 3})
    assert found == {
        "Conv2d[conv1]/conv2d_0|WEIGHT": 3,
        "Conv2d[conv3]/conv2d_0|WEIGHT": 3,
        "Linear[linear]/linear_0|WEIGHT": 6,
    }


def test_the_device_sets_which_widths_there_are() -> None:
    """VPU takes 4-bit weights, and keeps 8 bits where nothing is given."""
    scope = f"Branching/{CONV2}|WEIGHT"
    assert given([[4, scope]], device="VPU") == {f"{CONV2}|WEIGHT": 4}


def test_entries_may_stand_in_a_file() -> None:
    """bitwidth_per_scope takes the path of a file with the list, or with an object around it."""
    entries = [[4, f"Branching/{CONV2}|WEIGHT"]]
    Path("list.json").write_text(json.dumps(entries))
    Path("plan.json").write_text(json.dumps({"bitwidth_per_scope": entries}))
    assert given("list.json") == given("plan.json") == {f"{CONV2}|WEIGHT": 4}


@pytest.mark.parametrize(
    ("entries", "rest", "words"),
    [
        (
            [[4, f"Branching/{CONV2}|WEIGHT"]],
            {"device": "ANY"},
            ["Failed to assign bitwidth=4 to `Branching/" + CONV2, "target_device ANY", "[8]"],
        ),
        (
            [[3, f"Branching/{CONV2}|WEIGHT"]],
            {"device": "VPU"},
            ["Failed to assign bitwidth=3", "Supported quantization configs: [2, 4, 8]"],
        ),
        (
            [[3, f"Branching/{CONV2}|WEIGHT"]],
            {"scope_overrides": {"weights": {"{re}conv2]": {"bits": 5}}}},
            ["Failed to assign bitwidth=3", "scope_overrides", "[5]"],
        ),
        (
            [[4, "Branching/Conv2d[conv9]|WEIGHT"]],
            {},
            ["[0]: Could not find a quantization point at scope name", "Nearest", "conv2"],
        ),
        (
            [[4, "{re}conv.]|WEIGHT"], [8, f"Branching/{CONV2}|WEIGHT"]],
            {},
            ["[0]", "gives 4 bits", "[1]", "gives it 8", CONV2],
        ),
        ("nowhere.json", {}, ["nowhere.json", "cannot be read"]),
    ],
)
def test_what_cannot_be_is_refused(entries: Any, rest: dict[str, Any], words: list[str]) -> None:
    """Widths out of reach, unknown scopes and contradictions are errors, the model is untouched."""
    model = Branching()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="bitwidth_per_scope") as error:
        compress({"bitwidth_per_scope": entries}, model=model, **rest)
    assert [word for word in words if word not in str(error.value)] == []
    assert model.state_dict().keys() == before.keys()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("text", ["[[4]]", '{"other": []}', "[4", '[["4", "a"]]'])
def test_a_file_of_another_kind_is_refused(text: str) -> None:
    """A file without pairs of a number and a scope is refused with the form that is expected."""
    Path("plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"plan\.json.*Expected"):
        compress({"bitwidth_per_scope": "plan.json"})


def test_unmatched_entries_pass_without_validation() -> None:
    """With validate_scopes false an entry that fits nothing is left out."""
    entries = [[4, "Branching/Conv2d[conv9]|WEIGHT"], [4, f"Branching/{CONV2}|WEIGHT"]]
    assert given(entries, validate_scopes=False) == {f"{CONV2}|WEIGHT": 4}


def test_frozen_weights_keep_eight_bits() -> None:
    """A frozen weight may have 8 bits, fewer are refused."""
    model = Branching()
    model.conv2.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"conv2\.weight"):
        compress({"bitwidth_per_scope": [[4, "{re}conv2]"]]}, model=model)
    compress({"bitwidth_per_scope": [[4, "{re}conv3]|WEIGHT"]]}, model=model)


def test_a_staged_model_of_mixed_widths_trains_and_resumes() -> None:
    """Mixed widths go through the staged schedule, and come back from the compression state."""
    precision = {"bitwidth_per_scope": [[4, "{re}conv2]|WEIGHT"], [2, "{re}conv3]|WEIGHT"]]}
    staged = {"params": {"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 2}}
    controller, model = compress(precision, **staged)
    for _ in range(3):
        controller.scheduler.epoch_step()
    loss = nn.functional.cross_entropy(model(torch.rand(4, 3, 8, 8)), torch.arange(4))
    loss.backward()
    state = controller.get_compression_state()
    _, again = compress({"bitwidth_per_scope": "gone.json"}, state=state, **staged)
    assert widths(again) == widths(model)
    assert sorted(set(widths(again).values())) == [2, 4, 8]


def test_statistics_count_each_width() -> None:
    """The statistics have one row for each bit width."""
    controller, _ = compress({"bitwidth_per_scope": [[4, "{re}conv2]|WEIGHT"]]})
    found = controller.statistics().quantization
    assert found.num_wq_per_bitwidth == {8: 3, 4: 1}


def test_reasons_name_the_entry() -> None:
    """The layout says which widths were given by scope."""
    _, model = compress({"bitwidth_per_scope": [[4, "{re}conv2]|WEIGHT"]]})
    reasons = [i.reason for i in model.compression.layout if i.op.bits == 4]
    assert [reason.endswith("; 4 bits by bitwidth_per_scope") for reason in reasons] == [True]


def test_options_read_a_list_or_a_path() -> None:
    """The option is a tuple of pairs, or the text of a path."""
    for written, read in (("a.json", "a.json"), ([[4, "a"]], ((4, "a"),))):
        section = config({"bitwidth_per_scope": written}).options.compression[0]
        assert section.initializer.precision.bitwidth_per_scope == read
