# SPDX-License-Identifier: Apache-2.0
"""The controller of filter pruning: stages, rates, freezing, batch norms, resuming."""

from __future__ import annotations

import copy
import json
import logging
import re
from typing import Any

import pytest
import torch

import nncf
from nncf.compression.stage import CompressionStage
from tests.algorithms.filter_pruning.pruned import Residual, kept_filters, prune

DATA = [(torch.rand(8, 3, 8, 8) + 1, torch.zeros(8)) for _ in range(3)]
GROWING = {"pruning_target": 0.5, "pruning_steps": 4, "schedule": "exponential"}


def test_the_stage_follows_the_level() -> None:
    """Nothing is pruned, then something, then the target; a higher level is fully compressed too."""
    controller = prune(Residual(), params=GROWING)
    found = [controller.compression_stage()]
    for level in (0.2, 0.5, 0.7, 0.0):
        controller.set_pruning_level(level)
        found.append(controller.compression_stage())
    stage = CompressionStage
    full = stage.FULLY_COMPRESSED
    assert found == [stage.UNCOMPRESSED, stage.PARTIALLY_COMPRESSED, full, full, stage.UNCOMPRESSED]


def test_the_schedule_prunes_and_then_freezes() -> None:
    """By epochs the layer of 32 filters keeps ever fewer, after the end nothing changes."""
    controller = prune(Residual(), params={**GROWING, "channel_multiple": 2})
    found = []
    for _ in range(5):
        controller.scheduler.epoch_step()
        found.append(kept_filters(controller)["wide"])
    assert found == [32, 26, 22, 16, 16]
    assert controller.frozen
    controller.set_pruning_level(0.0)
    assert kept_filters(controller)["wide"] == 16


def test_frozen_masks_thaw_on_request() -> None:
    """After freeze levels are ignored, after freeze(False) they work again."""
    controller = prune(Residual())
    controller.freeze()
    controller.set_pruning_level(0.5)
    assert controller.kept.all()
    controller.freeze(False)
    controller.set_pruning_level(0.5)
    assert not controller.kept.all()


@pytest.mark.parametrize("params", [{"pruning_target": 0.4}, {"pruning_flops_target": 0.4}])
def test_a_rate_that_is_set_takes_the_place_of_the_schedule(params: dict[str, Any]) -> None:
    """Set to 0.25 without the schedule, the rate is about that, stays, and is the target."""
    controller = prune(Residual(), params={**params, "channel_multiple": 2})
    controller.disable_scheduler()
    controller.compression_rate = 0.25
    assert controller.compression_rate == pytest.approx(0.25, abs=0.07)
    rate, kept = controller.compression_rate, controller.kept
    controller.scheduler.epoch_step()
    assert (controller.compression_rate, (controller.kept == kept).all()) == (rate, True)
    assert controller.compression_stage() == CompressionStage.FULLY_COMPRESSED
    controller.compression_rate = 0.1
    assert controller.compression_rate < rate


def test_a_refused_rate_changes_nothing() -> None:
    """A rate out of reach raises; rate, masks and freezing are as before."""
    controller = prune(Residual(), params={"pruning_flops_target": 0.4})
    controller.set_pruning_level(0.3)
    before = controller.compression_rate, controller.kept.tolist(), controller.frozen
    with pytest.raises(nncf.ConfigError, match="is the most"):
        controller.child_ctrls[0].compression_rate = 0.95
    after = controller.compression_rate, controller.kept.tolist(), controller.frozen
    assert after == before


def test_batch_norms_adapt_on_request_only() -> None:
    """Running statistics change with run_batchnorm_adaptation, towards the data, and not without."""
    model = Residual()
    controller = prune(model, registered={"train_loader": DATA})
    before = model.norm.running_mean.clone()
    controller.set_pruning_level(0.5)
    assert torch.equal(model.norm.running_mean, before)
    controller.set_pruning_level(0.5, run_batchnorm_adaptation=True)
    assert not torch.equal(model.norm.running_mean, before)


def test_batch_norms_that_cannot_adapt_leave_the_level_as_it_was() -> None:
    """Without registered data the adaptation is refused, and nothing is pruned."""
    controller = prune(Residual())
    with pytest.raises(nncf.DataError, match="no data loader is registered"):
        controller.set_pruning_level(0.5, run_batchnorm_adaptation=True)
    assert controller.kept.all()
    assert controller.compression_stage() == CompressionStage.UNCOMPRESSED


def test_pruned_filters_compute_zero() -> None:
    """The masked filters of a layer give exactly zero, with their bias; the others do not."""
    model = Residual().eval()
    controller = prune(model, params={"prune_batch_norms": True})
    controller.set_pruning_level(0.5)
    seen = []
    model.wide.register_forward_hook(lambda _module, _args, output: seen.append(output))
    model(torch.rand(2, 3, 8, 8))
    per_filter = seen[0].detach().abs().amax((0, 2, 3))
    assert int((per_filter == 0).sum()) == 16


@pytest.mark.parametrize("epochs", [1, 2, 3, 6])
def test_training_resumes_bit_exactly(epochs: int) -> None:
    """Interrupted after any epoch and rebuilt from JSON and state dict, all bits are the same."""

    def train(model: Any, controller: Any, count: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(count):
            controller.scheduler.epoch_step()
            for images, _ in DATA:
                controller.scheduler.step()
                optimizer.zero_grad()
                (model(images).square().mean() + controller.loss()).backward()
                optimizer.step()

    params = {**GROWING, "channel_multiple": 2, "all_weights": True}
    whole = Residual()
    broken = copy.deepcopy(whole)
    rebuilt = copy.deepcopy(whole)
    train(whole, prune(whole, params=params), 7)
    first = prune(broken, params=params)
    train(broken, first, epochs)
    state = json.loads(json.dumps(first.get_compression_state()))
    second = prune(rebuilt, params=params, state=state)
    nncf.load_state(rebuilt, broken.state_dict(), is_resume=True)
    train(rebuilt, second, 7 - epochs)
    for name, value in whole.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], value), name


def test_a_damaged_state_is_refused() -> None:
    """A state without its levels raises CheckpointError."""
    model = Residual()
    state = prune(copy.deepcopy(model)).get_compression_state()
    del state["ctrl_state"]["filter_pruning"]["level"]
    with pytest.raises(nncf.CheckpointError, match=re.escape("damaged (KeyError('level'))")):
        prune(model, state=state)


def test_frozen_masks_stay_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """A level that is set on frozen masks is warned about; the schedule itself asks for none."""
    controller = prune(Residual(), params={"schedule": "baseline"})
    caplog.set_level(logging.WARNING, "nncf")
    for _ in range(3):
        controller.scheduler.epoch_step()
    assert "frozen" not in caplog.text
    level = controller.pruning_level
    controller.set_pruning_level(0.1)
    assert "The masks are frozen: level 0.1 is not applied" in caplog.text
    assert controller.pruning_level == level > 0.1


def test_a_rate_that_one_algorithm_cannot_reach_changes_none() -> None:
    """With a pattern beside pruning the common maximum is that of the pattern."""
    sections = [
        {"algorithm": "filter_pruning", "params": {"prune_first_conv": True}},
        {"algorithm": "magnitude_sparsity", "params": {"pattern": "2:4"}},
    ]
    text = {"input_info": {"sample_size": [2, 3, 8, 8]}, "compression": sections}
    controller, _ = nncf.create_compressed_model(
        Residual(), nncf.NNCFConfig.from_dict(text), dump_graphs=False
    )
    with pytest.raises(nncf.LevelError, match=r"the maximum is 0\.5"):
        controller.compression_rate = 0.7
    assert controller.child_ctrls[0].pruning_level == 0
    controller.compression_rate = 0.5
    assert controller.child_ctrls[0].pruning_level > 0.3
