# SPDX-License-Identifier: Apache-2.0
"""A network near a minimum, where the Hessian tells something."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.algorithms.mixed_precision.mixed import Branching, data


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
