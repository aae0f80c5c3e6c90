# SPDX-License-Identifier: Apache-2.0
"""Levels, scopes, schedules, rates and state of magnitude sparsity on a model."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

import nncf
from nncf.resources import NNCFDataLoader
from tests.algorithms.magnitude_sparsity.sparsified import (
    NAMES,
    SIZES,
    Net,
    config,
    dropped,
    masks,
    sparsified,
)

GROWING = {"sparsity_target": 0.6, "sparsity_target_epoch": 2, "sparsity_freeze_epoch": 3}


def test_levels_grow_to_the_target_and_count_exactly():
    """The schedule's levels, each with ⌊N · level⌋ weights dropped, and the stages on the way."""
    controller, model = sparsified(params=GROWING)
    counts, stages = [], []
    for _ in range(4):
        controller.scheduler.epoch_step()
        counts.append(sum(dropped(model).values()))
        stages.append(controller.compression_stage().name)
    middle = 0.6 - 0.6 * 0.5**0.9
    assert counts == [0, int(888 * middle), int(888 * 0.6), int(888 * 0.6)]
    assert stages == ["UNCOMPRESSED", "PARTIALLY_COMPRESSED"] + ["FULLY_COMPRESSED"] * 2


def test_forward_uses_the_masked_weight_and_keeps_the_dense_one():
    """The output is that of a model with zeros; the parameter itself is untouched."""
    controller, model = sparsified(sparsity_init=0.5)
    twin = Net()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if "compression" not in k})
    x = torch.rand(2, 4, 6, 6)
    dense = twin(x)
    with torch.no_grad():
        for name, kept in masks(model).items():
            twin.get_submodule(name).weight *= kept
    assert torch.equal(model(x), twin(x))
    assert not torch.equal(model(x), dense)
    assert int((model.conv1.weight == 0).sum()) == 0
    assert sum(dropped(model).values()) == 444
    assert controller.compression_stage() is nncf.CompressionStage.FULLY_COMPRESSED


def test_dropped_weights_get_no_gradient_but_may_return():
    """The gradient is zero behind the mask; a weight grown large returns until masks are frozen."""
    controller, model = sparsified(params=GROWING)
    for _ in range(2):
        controller.scheduler.epoch_step()
    model(torch.rand(2, 4, 6, 6)).square().sum().backward()
    gone = ~masks(model)["conv2"]
    assert gone.any()
    assert model.conv2.weight.grad[gone].abs().max() == 0
    assert model.conv2.weight.grad[~gone].abs().min() > 0
    place = tuple(gone.nonzero()[0].tolist())
    with torch.no_grad():
        model.conv2.weight[place] = 9.0
    controller.scheduler.epoch_step()
    assert masks(model)["conv2"][place]
    controller.scheduler.epoch_step()
    gone = tuple((~masks(model)["conv2"]).nonzero()[0].tolist())
    with torch.no_grad():
        model.conv2.weight[gone] = 9.0
    controller.scheduler.epoch_step()
    assert not masks(model)["conv2"][gone]


def test_per_step_schedule_updates_within_an_epoch():
    """With ``update_per_optimizer_step`` masks change from step to step."""
    controller, model = sparsified(
        params={"update_per_optimizer_step": True, "steps_per_epoch": 4, **GROWING}
    )
    controller.scheduler.epoch_step()
    counts = []
    for _ in range(4):
        controller.scheduler.step()
        counts.append(sum(dropped(model).values()))
    levels = [0.6 - 0.6 * (1 - k / 8) ** 0.9 for k in range(4)]
    assert counts == [int(888 * level) for level in levels]


def test_levels_by_scope_follow_the_same_curve():
    """An overridden layer goes the same share of its own way; the others share their level."""
    controller, model = sparsified(
        params=GROWING,
        scope_overrides={
            "Net/Conv2d[conv2]": {"sparsity_init": 0.1, "sparsity_target": 0.2},
            "{re}head": {"sparsity_target": 0.0},
        },
    )
    assert dropped(model) == {"conv1": 0, "conv2": 57, "head": 0}
    controller.scheduler.epoch_step()
    controller.scheduler.epoch_step()
    share = 1 - 0.5**0.9
    expected = {"conv1": int(288 * 0.6 * share), "conv2": int(576 * (0.1 + 0.1 * share)), "head": 0}
    assert dropped(model) == expected
    controller.scheduler.epoch_step()
    assert dropped(model) == {"conv1": int(288 * 0.6), "conv2": int(576 * 0.2), "head": 0}
    controller.compression_rate = 0.9
    assert dropped(model) == {"conv1": int(288 * 0.9), "conv2": int(576 * 0.2), "head": 0}


def test_the_override_written_last_wins():
    """Of two scopes that match a layer the later one decides."""
    overrides = {
        "{re}conv": {"sparsity_target": 0.4},
        "Net/Conv2d[conv2]": {"sparsity_target": 0.2},
    }
    controller, model = sparsified(params=GROWING, scope_overrides=overrides)
    controller.scheduler.epoch_step(5)
    assert dropped(model) == {"conv1": 115, "conv2": 115, "head": 14}


@pytest.mark.parametrize(
    ("scope", "error"),
    [("Net/Conv2d[conv9]", nncf.ScopeNotFound), ("{re}relu", nncf.ConfigError)],
)
def test_overrides_that_reach_no_layer_are_errors(scope, error):
    """An unknown scope, and one of an operation without a weight, leave the model untouched."""
    model = Net()
    keys = list(model.state_dict())
    with pytest.raises(error, match="scope_overrides"):
        sparsified(model, scope_overrides={scope: {"sparsity_target": 0.1}})
    assert list(model.state_dict()) == keys


def test_local_levels_are_set_by_hand():
    """With local levels there is no schedule; each layer has the level that it was given."""
    controller, model = sparsified(
        sparsity_init=0.1, params={"sparsity_level_setting_mode": "local"}
    )
    assert dropped(model) == {name: int(0.1 * SIZES[name]) for name in NAMES}
    controller.set_sparsity_level(0.5, "Net/Conv2d[conv1]")
    controller.set_sparsity_level(0.25, ["Net/Linear[head]/linear_0"])
    assert dropped(model) == {"conv1": 144, "conv2": 57, "head": 6}
    controller.scheduler.epoch_step()
    assert dropped(model) == {"conv1": 144, "conv2": 57, "head": 6}
    assert controller.compression_stage() is nncf.CompressionStage.FULLY_COMPRESSED
    target = controller.statistics().magnitude_sparsity.target_sparsity_level
    assert target == pytest.approx((144 + 57.6 + 6) / 888)
    controller.set_sparsity_level(0.5)
    assert dropped(model) == {"conv1": 144, "conv2": 288, "head": 12}


def test_targets_share_a_level_when_levels_are_global():
    """Several layers given together compete with each other, the others stay."""
    controller, model = sparsified(params={"weight_importance": "abs"})
    with torch.no_grad():
        model.conv1.weight.mul_(1e-6)
    controller.set_sparsity_level(0.25, ["Net/Conv2d[conv1]", "Net/Conv2d[conv2]"])
    assert dropped(model) == {"conv1": 216, "conv2": 0, "head": 0}


@pytest.mark.parametrize("target", ["Net/Conv2d[conv9]", "{re}batch_norm"])
def test_a_target_without_mask_is_an_error(target):
    """A scope that reaches no masked layer is reported, and no mask changes."""
    controller, model = sparsified(params={"sparsity_level_setting_mode": "local"})
    with pytest.raises(nncf.ScopeNotFound, match="target"):
        controller.set_sparsity_level(0.5, target)
    assert sum(dropped(model).values()) == 0


@pytest.mark.parametrize("level", [1.0, -0.1, 1.5, float("nan")])
def test_levels_out_of_range_are_errors(level):
    """A level outside of [0, 1) changes nothing, by call or as a rate."""
    controller, model = sparsified(sparsity_init=0.5)
    before = masks(model)
    with pytest.raises(nncf.LevelError, match=r"\[0, 1\)"):
        controller.set_sparsity_level(level)
    with pytest.raises(AttributeError):
        controller.compression_rate = level
    assert all(torch.equal(before[name], kept) for name, kept in masks(model).items())
    assert controller.frozen is False


def test_a_level_beyond_the_pattern_names_the_maximum():
    """Of 2:4 no more than a half can go."""
    controller, _ = sparsified(params={"pattern": "2:4"})
    with pytest.raises(nncf.LevelError, match=r"maximum is 0\.5, which the pattern 2:4 leaves"):
        controller.set_sparsity_level(0.6)
    assert controller.maximal_compression_rate == 0.5


def test_frozen_masks_stay_and_say_so(caplog):
    """A level set while frozen is not applied, with a warning; unfrozen it is."""
    controller, model = sparsified(sparsity_init=0.5)
    controller.freeze()
    with caplog.at_level(logging.WARNING, "nncf"):
        controller.set_sparsity_level(0.8)
    assert "frozen" in caplog.text
    assert sum(dropped(model).values()) == 444
    controller.freeze(False)
    controller.set_sparsity_level(0.8)
    assert sum(dropped(model).values()) == 710


def test_compression_rate_counts_the_whole_model_and_sets_the_level():
    """The rate read is the share of zeros in all parameters; the rate set is frozen in place."""
    controller, model = sparsified()
    with torch.no_grad():
        model.norm.bias.zero_()
    everything = sum(p.numel() for p in model.parameters())
    assert controller.compression_rate == pytest.approx(8 / everything)
    controller.compression_rate = 0.5
    assert sum(dropped(model).values()) == 444
    assert controller.compression_rate == pytest.approx((444 + 8) / everything)
    assert controller.frozen
    controller.compression_rate = 0.25
    assert sum(dropped(model).values()) == 222


def test_a_disabled_scheduler_counts_as_done():
    """Loops that set the rate themselves see a fully compressed model."""
    controller, _ = sparsified(params=GROWING)
    assert controller.compression_stage() is nncf.CompressionStage.UNCOMPRESSED
    controller.disable_scheduler()
    controller.compression_rate = 0.2
    assert controller.compression_stage() is nncf.CompressionStage.FULLY_COMPRESSED


class Batches(NNCFDataLoader):
    """Two batches that are far from what a fresh batch norm expects."""

    batch_size = 8

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        return iter([((3 + torch.rand(8, 4, 6, 6, generator=generator),), {}) for _ in range(2)])


def test_batch_norms_adapt_on_request():
    """``run_batchnorm_adaptation`` measures the masked model; without it nothing is touched."""
    settings = nncf.register_default_init_args(config(), Batches())
    model = Net()
    before = model.norm.running_mean.clone()
    controller, model = nncf.create_compressed_model(model, settings, dump_graphs=False)
    controller.set_sparsity_level(0.5)
    assert torch.equal(model.norm.running_mean, before)
    controller.set_sparsity_level(0.5, run_batchnorm_adaptation=True)
    adapted = model.norm.running_mean.clone()
    assert not torch.equal(adapted, before)
    controller.set_sparsity_level(0.9, run_batchnorm_adaptation=True)
    assert not torch.equal(adapted, model.norm.running_mean)


def test_adaptation_without_data_is_an_error():
    """Asking for adaptation with no loader registered says how to register one."""
    controller, _ = sparsified()
    with pytest.raises(nncf.DataError, match="register_default_init_args"):
        controller.set_sparsity_level(0.5, run_batchnorm_adaptation=True)


def test_thresholds_and_levels_are_in_the_statistics():
    """Statistics show the threshold of each layer and what TensorBoard draws."""
    controller, model = sparsified(sparsity_init=0.5, params={"weight_importance": "abs"})
    found = controller.statistics().magnitude_sparsity
    gone = [
        float(model.get_submodule(name).weight.detach()[~kept].abs().max())
        for name, kept in masks(model).items()
    ]
    assert [item.threshold for item in found.thresholds] == [max(gone)] * 3
    assert found.target_sparsity_level == 0.5
    assert found.model_statistics.sparsity_level_for_layers == 0.5
    assert f"{max(gone):.3e}" in found.to_str()
    assert found.tensorboard() == {
        "magnitude_sparsity/sparsity_level_for_model": found.model_statistics.sparsity_level,
        "magnitude_sparsity/sparsity_level_for_sparsified_layers": 0.5,
        "magnitude_sparsity/target_sparsity_level": 0.5,
    }


def test_state_restores_levels_thresholds_and_freezing():
    """A restored controller has the same statistics, and sets nothing by itself."""
    controller, model = sparsified(params={**GROWING, "sparsity_freeze_epoch": 1})
    controller.scheduler.epoch_step()
    controller.scheduler.epoch_step()
    state = json.loads(json.dumps(controller.get_compression_state()))
    again, twin = sparsified(state=state, params={**GROWING, "sparsity_freeze_epoch": 1})
    nncf.load_state(twin, model.state_dict(), is_resume=True)
    assert str(again.statistics()) == str(controller.statistics())
    assert again.get_compression_state() == state
    assert again.frozen
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
    again.scheduler.epoch_step()
    assert all(torch.equal(kept, masks(model)[name]) for name, kept in masks(twin).items())


@pytest.mark.parametrize("key", ["levels", "thresholds", "sparsity_level", "frozen"])
def test_a_damaged_state_is_an_error(key):
    """A controller's state without one of its keys says which are expected."""
    controller, _ = sparsified()
    state = controller.get_compression_state()
    del state["ctrl_state"]["magnitude_sparsity"][key]
    with pytest.raises(nncf.CheckpointError, match="magnitude_sparsity"):
        sparsified(state=state)


def test_strip_leaves_a_plain_model_with_zeros():
    """After strip nothing of ours is left and the zeros stand in the weights."""
    controller, model = sparsified(sparsity_init=0.5)
    plain = controller.strip()
    assert list(plain.state_dict()) == list(Net().state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
    zeros = sum(int((plain.get_submodule(name).weight == 0).sum()) for name in NAMES)
    assert zeros == 444
    assert not any(
        torch.signbit(plain.get_submodule(name).weight[~kept]).any()
        for name, kept in masks(model).items()
    )


def test_a_model_without_weights_warns_and_works(caplog):
    """Nothing to make sparse: a warning, and every call of the controller still works."""
    with caplog.at_level(logging.WARNING, "nncf"):
        controller, _ = sparsified(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))
    assert "no weight that can be made sparse" in caplog.text
    controller.scheduler.epoch_step()
    controller.compression_rate = 0.5
    assert controller.compression_rate == pytest.approx(0.5)  # the biases of the batch norm
    assert "Sparsity level" in str(controller.statistics())
    assert controller.strip()(torch.rand(1, 4, 6, 6)).shape == (1, 4, 6, 6)
