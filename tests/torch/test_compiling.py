# SPDX-License-Identifier: Apache-2.0
"""Calls that ``torch.compile`` runs past every mode are compressed all the same, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nncf
from nncf.torch import op_kinds


class Activated(nn.Module):
    """An activation function between two layers, and where asked for, read twice."""

    def __init__(self, function: Callable[..., Any], branches: int) -> None:
        super().__init__()
        self.function, self.branches = function, branches
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.branches == 2:
            return self.second(self.function(x)) + torch.log(x.square() + 1)
        return self.second(self.function(x))


def compressed(function: Callable[..., Any], branches: int = 1) -> nn.Module:
    torch.manual_seed(0)
    config = nncf.NNCFConfig.from_dict({
        "input_info": {"sample_size": [1, 8]},
        "target_device": "TRIAL",
        "compression": {"algorithm": "quantization"},
    })  # fmt: skip
    batches = [(torch.randn(4, 8), torch.zeros(4)) for _ in range(2)]
    config = nncf.register_default_init_args(config, batches)
    model = Activated(function, branches)
    found: nn.Module = nncf.create_compressed_model(model, config, dump_graphs=False)[1]
    return found


@pytest.mark.parametrize("function", [torch.relu_, F.hardswish, torch.sigmoid_], ids=str)
def test_outputs_of_hidden_calls_are_compressed(function: Callable[..., Any]) -> None:
    """The quantizer of such a result runs where the result is read, compiled or not."""
    assert op_kinds.hidden_from_compilers(function)
    model = compressed(function)
    assert 0 in model.compression.sites["Activated/Linear[second]/linear_0"].before
    torch._dynamo.reset()
    x = torch.randn(4, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("function", [F.relu, torch.relu, torch.Tensor.relu_, F.gelu], ids=str)
def test_calls_that_are_shown_are_not_hidden(function: Callable[..., Any]) -> None:
    """Functions that compilers show, and methods of tensors, keep the place of their quantizer."""
    assert not op_kinds.hidden_from_compilers(function)
    name = op_kinds.describe(function)[0]
    assert 0 in compressed(function).compression.sites[f"Activated/{name}_0"].after


@pytest.mark.parametrize("how", ["model", "step", "whole step"])
def test_inputs_of_hidden_calls_are_refused(how: str) -> None:
    """Where only the input of such a call could be compressed, compiling fails and says why."""
    model = compressed(F.hardswish, branches=2)
    assert model.compression.hidden == ["Activated/hardswish_0"]
    x = torch.randn(4, 8)
    assert torch.isfinite(model(x)).all()
    torch._dynamo.reset()

    def step(y: torch.Tensor) -> torch.Tensor:
        return model(y)

    function = model if how == "model" else step
    compiled = torch.compile(function, fullgraph=how == "whole step", backend="aot_eager")
    with pytest.raises(Exception, match="Activated/hardswish_0"):
        compiled(x)
    assert torch.isfinite(model(x)).all()
