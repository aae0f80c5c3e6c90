# SPDX-License-Identifier: Apache-2.0
"""Zeros in the parameters of a model."""

from __future__ import annotations

import torch
from torch import nn

import nncf
from nncf.torch.counting import zero_counts


def test_each_parameter_counts_once():
    """Shared parameters count under their first name, and a model without any has nothing."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2, bias=False))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1, 0], [2, -0.0, 3]]))
        model[0].bias.zero_()
    assert zero_counts(model) == {"0.weight": ((2, 3), 3), "0.bias": ((2,), 2)}
    assert zero_counts(nn.ReLU()) == {}


def test_parameters_of_compression_do_not_count():
    """The ranges of quantizers are no parameters of the user's model."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = zero_counts(model)
    config = {"input_info": {"sample_size": [1, 3]}, "compression": {"algorithm": "quantization"}}
    nncf.create_compressed_model(model, config, dump_graphs=False)
    assert zero_counts(model) == before
