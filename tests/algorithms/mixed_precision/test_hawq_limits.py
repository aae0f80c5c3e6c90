# SPDX-License-Identifier: Apache-2.0
"""Bit widths from second derivatives: budgets, files of traces, and what is refused or told."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nncf.errors import ConfigError, DataError, LevelError, MissingDependency
from tests.algorithms.mixed_precision.mixed import (
    CONV1,
    CONV2,
    CONV3,
    HAWQ,
    LINEAR,
    SIZES,
    Branching,
    compress,
    config,
    traces,
    weight_bytes,
    weight_widths,
)


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
