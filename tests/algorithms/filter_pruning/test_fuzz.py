# SPDX-License-Identifier: Apache-2.0
"""Random networks with random channels hidden compute the same when the channels are removed."""

from __future__ import annotations

import copy
import random

import pytest
import torch

import nncf
from tests.algorithms.filter_pruning.random_code import random_network
from tests.contract.comparing import same

BATCHES = range(5)
"""Of ten networks each, in the fast tests."""


def check(seed: int) -> int:
    """Hide random channels of a random network, remove them, compare; return how many groups it has."""
    draw = random.Random(seed)
    model = random_network(seed).double().eval()
    multiple = draw.choice([1, 1, 2, 8])
    section = {
        "algorithm": "filter_pruning",
        "params": {"prune_first_conv": True, "prune_downsample_convs": True,
                   "channel_multiple": multiple},
    }  # fmt: skip
    x = model.inputs(3)
    x = x.double() if x.is_floating_point() else x
    seen = draw.choice([1, 2])
    config = {"input_info": {"sample_size": list(x[:seen].shape)}, "compression": section}
    controller, model = nncf.create_compressed_model(
        model,
        nncf.NNCFConfig.from_dict(config),
        dummy_forward_fn=lambda m: m(nncf.torch.nncf_model_input(x[:seen])),
        dump_graphs=False,
    )
    with torch.no_grad():
        whole = model(x)
    levels = {group.number: draw.uniform(0, 0.9) for group in controller.groups}
    controller.set_pruning_level(levels)
    small, state = controller.strip(), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        masked, found = model(x), small(x)
    error = float((found - masked).abs().max() / masked.abs().max().clamp(min=1e-12))
    about = f"seed {seed}, multiple {multiple}, {model}\n{controller.groups}"
    assert error < 1e-9, f"removed and masked differ by {error:.1e}: {about}"
    assert same(model.state_dict(), state), about
    statistics = controller.statistics().filter_pruning.model_statistics
    real = sum(parameter.numel() for parameter in small.parameters())
    assert real == statistics.current.parameters, about
    assert real < statistics.full.parameters or controller.kept.all(), about
    gone = int((~controller.kept).sum())
    assert gone < 4 or not torch.equal(whole, masked), about  # a single one may be a dead ReLU
    small.train()(x[:2]).sum().backward()
    return len(controller.groups)


@pytest.mark.parametrize("batch", BATCHES)
def test_removed_equals_masked(batch: int) -> None:
    """Ten random networks: masked and small give the same outputs, with fewer parameters."""
    groups = [check(10 * batch + place) for place in range(10)]
    assert sum(groups) > 10


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_removed_equals_masked_in_many(batch: int) -> None:
    """A thousand random networks, fifty at a time."""
    groups = [check(1000 + 50 * batch + place) for place in range(50)]
    assert sum(groups) > 50
