# SPDX-License-Identifier: Apache-2.0
"""Layers that did not run when the model was looked at, where channels are removed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from nncf.torch.removal import unseen_layers
from tests.algorithms.filter_pruning.pruned import Residual, prune


class WithAuxiliaryHead(Residual):
    """Has a second head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Sequential(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 5, 1))

    def forward(self, x: torch.Tensor) -> Any:
        found = super().forward(x)
        return (found, self.auxiliary(self.stem(x))) if self.training else found


def test_strip_warns_of_layers_that_did_not_run(caplog: pytest.LogCaptureFixture) -> None:
    """Strip names the layers that may no longer fit, and only when channels have gone."""
    controller = prune(WithAuxiliaryHead().eval())
    with caplog.at_level(logging.WARNING, "nncf"):
        controller.strip()
        assert "auxiliary" not in caplog.text
        controller.set_pruning_level(0.5)
        controller.strip()
    assert "auxiliary did not run" in caplog.text


def test_unseen_layers_are_named_by_their_outermost_module() -> None:
    """Of a branch without any used parameter only the top is named, and none without a matrix."""
    shapes = {
        "body.conv.weight": (4, 3),
        "body.spare.weight": (4, 3),
        "head.first.weight": (4, 4),
        "head.norm.weight": (4,),
        "norm.weight": (4,),
    }
    unused = [name for name in shapes if name != "body.conv.weight"]
    assert unseen_layers(unused, shapes) == ("body.spare", "head")
