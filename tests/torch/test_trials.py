# SPDX-License-Identifier: Apache-2.0
"""Trials: what is trained inside is undone, and other ops stand aside."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import nncf
from nncf.torch.trials import only_ops, trial


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2))


def wreck(model: nn.Module) -> None:
    """Train, switch modes and flags, replace tensors, change types, draw random numbers."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(torch.rand(8, 4)).sum().backward()
    optimizer.step()
    model[0].bias.requires_grad_(False)
    model[1].running_mean = torch.full((6,), 9.0)
    model[3].weight.data = torch.zeros(2, 6, dtype=torch.float64)
    model[2].eval()
    random.random()


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_is_undone(fails: bool) -> None:
    """Values, tensors, gradients, flags and random streams are as before, also after a failure."""
    model = network()
    model[0].weight.grad = torch.ones(6, 4)
    model[1].eval()
    buffers = dict(model.named_buffers())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    streams = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext(), trial(model):
        assert model[0].weight.grad is None
        wreck(model)
        if fails:
            raise KeyboardInterrupt
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model[0].weight.grad.tolist() == torch.ones(6, 4).tolist()
    assert [p.grad for p in model.parameters()][1:] == [None] * 5
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]


def test_trials_with_one_loader_see_the_same_order() -> None:
    """The generator of a shuffling loader is put back, so each trial draws the same batches."""
    loader = torch.utils.data.DataLoader(
        list(range(20)), 4, shuffle=True, generator=torch.Generator().manual_seed(3)
    )
    orders = []
    for _ in range(2):
        with trial(network(), loader):
            orders.append([batch.tolist() for batch in loader])
    assert orders[0] == orders[1]


def test_other_ops_stand_aside() -> None:
    """Inside, only the named ops run; afterwards the same objects are in the same order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.rand(5, 4)
    plain = model(x)
    config = nncf.NNCFConfig.from_dict(
        {"input_info": {"sample_size": [5, 4]}, "compression": {"algorithm": "quantization"}}
    )
    nncf.create_compressed_model(
        model, nncf.register_default_init_args(config, [(x, x)]), dump_graphs=False
    )
    ops = dict(model.compression.ops)
    first = next(iter(ops))
    with only_ops(model, []):
        assert torch.equal(model(x), plain)
        assert len(list(model.parameters())) == 4
    with only_ops(model, [first]):
        assert not torch.equal(model(x), plain)
    assert list(model.compression.ops.items()) == list(ops.items())
