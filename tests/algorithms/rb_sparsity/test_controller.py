# SPDX-License-Identifier: Apache-2.0
"""Loss, levels, schedules, rates, statistics and state of RB sparsity on a model."""

from __future__ import annotations

import copy
import json
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nncf
from nncf.common.utils.tensorboard import prepare_for_tensorboard
from tests.algorithms.magnitude_sparsity.sparsified import NAMES, Net

GROWING = {"sparsity_target": 0.6, "sparsity_target_epoch": 2, "sparsity_freeze_epoch": 3}
LOCAL = {"sparsity_level_setting_mode": "local"}
X = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(3))


def config(**section: Any) -> dict[str, Any]:
    section = {"algorithm": "rb_sparsity", **section}
    return {"input_info": {"sample_size": [1, 4, 6, 6]}, "compression": section}


def sparsified(model: nn.Module | None = None, **section: Any) -> tuple[Any, nn.Module]:
    """Return a compressed Net whose logits lie around zero."""
    torch.manual_seed(0)
    controller, model = nncf.create_compressed_model(
        model or Net(), config(**section), dump_graphs=False
    )
    with torch.no_grad():
        for mask in controller.masks.values():
            mask.logits.normal_(1)
    return controller, model


def gradients(controller: Any, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all gradients of one training step, and leave buffers as they were."""
    model.zero_grad()
    before = copy.deepcopy(model.state_dict())
    (model(X).square().sum() + controller.loss()).backward()
    model.load_state_dict(before)
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def counts(controller: Any) -> list[tuple[int, int]]:
    """Return kept and all weights of each mask."""
    return [(int((m.logits > 0).sum()), m.logits.numel()) for m in controller.masks.values()]


def test_global_loss_is_the_documented_formula():
    """The loss looks at all masks together, with the level that was set."""
    controller, _ = sparsified(sparsity_init=0.25)
    found = counts(controller)
    density = sum(kept for kept, _ in found) / sum(size for _, size in found)
    assert controller.loss().item() == pytest.approx(((density - 0.75) / 0.05) ** 2, rel=1e-4)
    controller.set_sparsity_level(0.6)
    assert controller.loss().item() == pytest.approx(((density - 0.4) / 0.05) ** 2, rel=1e-4)
    assert controller.compression_rate == 0.6
    assert controller.current_sparsity == pytest.approx(1 - density)


def test_local_loss_adds_up_the_layers():
    """Each layer has its own level: from one call for all, or from one for a scope."""
    controller, _ = sparsified(params=LOCAL)
    controller.set_sparsity_level(0.5)
    assert set(controller.levels.values()) == {0.5}
    controller.set_sparsity_level(0.2, "Net/Conv2d[conv2]")
    levels = [0.2 if "[conv2]" in name else 0.5 for name in controller.masks]
    expected = sum(
        ((kept / size - (1 - level)) / 0.05) ** 2
        for (kept, size), level in zip(counts(controller), levels, strict=True)
    )
    assert levels.count(0.2) == 1
    assert controller.loss().item() == pytest.approx(expected, rel=1e-4)
    assert controller.compression_stage() is nncf.CompressionStage.FULLY_COMPRESSED
    sizes = [size for _, size in counts(controller)]
    mean = sum(s * level for s, level in zip(sizes, levels, strict=True)) / sum(sizes)
    statistics = controller.statistics().rb_sparsity
    assert statistics.target_sparsity_level == pytest.approx(mean)


def test_loss_pulls_every_logit_down_while_too_many_are_kept():
    """The loss has a gradient for each logit; its sign is that of what is missing to the target."""
    for level, sign in ((0.9, 1), (0.0, -1)):
        controller, _ = sparsified(sparsity_init=level)
        controller.loss().backward()
        gradient = torch.cat([m.logits.grad.flatten() for m in controller.masks.values()])
        assert bool((gradient * sign > 0).all())


def test_impossible_levels_are_refused():
    """Levels out of [0, 1), unknown scopes and levels of layers in the global mode say why."""
    controller, _ = sparsified()
    for level in (-0.1, 1.0, float("nan")):
        with pytest.raises(nncf.LevelError, match=r"\[0, 1\)"):
            controller.set_sparsity_level(level)
        with pytest.raises(nncf.LevelError):
            controller.compression_rate = level
    with pytest.raises(nncf.ConfigError, match='"local"'):
        controller.set_sparsity_level(0.5, "Net/Conv2d[conv1]")
    local, _ = sparsified(params=LOCAL)
    with pytest.raises(nncf.ScopeNotFound, match="conv1"):
        local.set_sparsity_level(0.5, "Net/Conv2d[conv9]")
    assert set(local.levels.values()) == {0.0}


def test_schedule_moves_the_target_and_freezes():
    """Exponential by default: levels, stages and the freeze, after which the loss is 0."""
    controller, _ = sparsified(params=GROWING)
    levels, stages = [], []
    for _ in range(4):
        controller.scheduler.epoch_step()
        levels.append(controller.compression_rate)
        stages.append(int(controller.compression_stage()))
    assert levels == pytest.approx([0, 1 - 0.4**0.5, 0.6, 0.6])
    assert stages == [0, 1, 2, 2]
    assert controller.frozen
    assert float(controller.loss()) == 0
    weight = torch.ones(8, 4, 3, 3)
    mask = controller.masks[next(iter(controller.masks))]
    frozen = mask(weight)
    assert 0 < int((frozen == 0).sum()) < 288
    assert torch.equal(frozen, mask.eval()(weight))
    assert torch.equal(frozen, controller.strip().conv1.weight != 0)


def test_adaptive_schedule_follows_the_masks():
    """The level rises once the masks are near it, and waits while they are not."""
    params = {"schedule": "adaptive", "sparsity_target": 0.3, "step": 0.1, "eps": 0.02}
    controller, _ = sparsified(params=params)
    levels = []
    for bias in (3.0, 3.0, 3.0, -3.0, -3.0):
        with torch.no_grad():
            for mask in controller.masks.values():
                mask.logits.fill_(bias)
        controller.scheduler.epoch_step()
        levels.append(round(controller.compression_rate, 3))
    assert levels == [0.1, 0.1, 0.1, 0.2, 0.3]


def test_frozen_masks_ignore_levels_until_a_rate_is_set(caplog):
    """A level is refused with a warning while frozen; setting the rate makes masks learn again."""
    controller, _ = sparsified(params=GROWING)
    controller.freeze()
    with caplog.at_level(logging.WARNING, "nncf"):
        controller.set_sparsity_level(0.5)
    assert "frozen" in caplog.text
    assert controller.sparsity_level == 0
    controller.compression_rate = 0.5
    assert controller.compression_rate == 0.5
    assert controller.loss().requires_grad


def test_statistics_are_right_before_any_loss():
    """Zeros of evaluation, target and mean probability of zero are told before the first loss."""
    controller, model = sparsified(sparsity_init=0.3)
    found = controller.statistics()
    part = found.rb_sparsity
    logits = torch.cat([m.logits.detach().flatten() for m in controller.masks.values()])
    total = sum(p.numel() for n, p in model.named_parameters() if "compression" not in n)
    zeros = sum(int((p == 0).sum()) for p in controller.strip().parameters())
    assert part.mean_sparse_prob == pytest.approx(float(1 - logits.sigmoid().mean()), abs=1e-5)
    assert part.target_sparsity_level == 0.3
    assert part.model_statistics.sparsity_level == pytest.approx(zeros / total)
    assert part.model_statistics.sparsity_level_for_layers == pytest.approx(
        float((logits <= 0).float().mean())
    )
    assert "The probability that one weight will be zeroed" in found.to_str()
    tags = prepare_for_tensorboard(found)
    assert tags["rb_sparsity/target_sparsity_level"] == 0.3


def test_state_is_json_and_restores_levels_and_freeze():
    """A state written in the middle brings back level, levels by layer, and the frozen masks."""
    controller, model = sparsified(params=LOCAL)
    controller.set_sparsity_level(0.3, "Net/Conv2d[conv2]")
    controller.freeze()
    with torch.no_grad():
        for mask in controller.masks.values():
            mask.logits.neg_()  # what drifts after the freeze counts no more
    state = json.loads(json.dumps(controller.get_compression_state()))
    torch.manual_seed(9)
    again, twin = nncf.create_compressed_model(
        Net(), config(params=LOCAL), compression_state=state, dump_graphs=False
    )
    nncf.load_state(twin, model.state_dict(), is_resume=True)
    assert again.levels == controller.levels
    assert again.frozen
    assert torch.equal(twin(X), model(X))
    assert again.get_compression_state() == state
    del state["ctrl_state"]["rb_sparsity"]["levels"]
    with pytest.raises(nncf.CheckpointError, match="levels"):
        nncf.create_compressed_model(
            Net(), config(params=LOCAL), compression_state=state, dump_graphs=False
        )


def test_strip_leaves_a_plain_model_with_zeros():
    """No trace of compression stays, and the plain model computes the same bits."""
    controller, model = sparsified()
    plain = controller.strip().eval()
    assert torch.equal(plain(X), model.eval()(X))
    assert {n for n, _ in plain.named_modules()} == {n for n, _ in Net().named_modules()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_forward_sees_the_same_mask(reentrant):
    """In training mode gradient checkpointing changes no bit of any gradient."""

    class Checkpointed(Net):
        again = False

        def forward(self, x):
            if not self.again:
                return super().forward(x)
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    controller, model = sparsified(Checkpointed())
    expected = gradients(controller, model)
    model.again = True
    anchored = X.clone().requires_grad_() if reentrant else X
    model.zero_grad()
    (model(anchored).square().sum() + controller.loss()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_training_step_draws_the_same_masks(backend):
    """One graph, compiled once, computes the gradients of the eager model step after step."""
    controller, model = sparsified()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    ops = [part.compression.ops for part in (model, twin)]
    seen = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            model.zero_grad()
            twin.zero_grad()
            (compiled(X).square().sum() + controller.loss()).backward()
            twin(X).square().sum().backward()
            for name, mask in ops[1].items():
                mask.kept_count().backward(torch.zeros(()))
                assert torch.equal(mask.key, ops[0][name].key)
            seen.append(model.conv1.weight.grad.clone())
            for one, other in zip(model.children(), twin.children(), strict=True):
                for p, q in zip(one.parameters(), other.parameters(), strict=True):
                    if one is not model.compression:
                        torch.testing.assert_close(p.grad, q.grad)
    assert not torch.equal(seen[0], seen[1])


def test_own_multiplier_wins_over_the_root_key():
    """The factor on the gradients of the logits: the algorithm's key first, then the root's."""
    plain = gradients(*sparsified())
    for own, root, factor in ((3.0, 5.0, 3.0), (None, 5.0, 5.0), (0.0, 5.0, 0.0)):
        section = {} if own is None else {"compression_lr_multiplier": own}
        text = {**config(**section), "compression_lr_multiplier": root}
        torch.manual_seed(0)
        controller, model = nncf.create_compressed_model(Net(), text, dump_graphs=False)
        with torch.no_grad():
            for mask in controller.masks.values():
                mask.logits.normal_(1)
        for name, gradient in gradients(controller, model).items():
            scale = factor if name.endswith("logits") else 1.0
            torch.testing.assert_close(gradient, plain[name] * scale)


def test_frozen_layers_are_refused_by_name():
    """A layer with requires_grad false is an error that names it, before anything changes."""
    model = Net()
    model.conv1.weight.requires_grad_(False)
    with pytest.raises(nncf.ModelError, match=r"conv1\.weight"):
        nncf.create_compressed_model(model, config(), dump_graphs=False)
    assert not hasattr(model, "compression")


def test_ignored_layers_have_no_mask():
    """Scopes take layers out; their weights never become zero."""
    controller, _ = sparsified(ignored_scopes=["Net/Conv2d[conv1]"])
    assert controller.masks
    assert not any("conv1" in name for name in controller.masks)
    assert int((controller.strip().conv1.weight == 0).sum()) == 0


def test_masks_that_stay_behind_are_frozen_with_a_warning(caplog):
    """New masks keep everything; frozen before they learn, they stay far from their level."""
    controller, _ = sparsified(sparsity_init=0.9)
    controller.freeze()
    assert "the masks are frozen at level 0." in caplog.text
    assert "and 0.900 was asked for" in caplog.text
    caplog.clear()
    controller.freeze()
    assert not caplog.text


def test_checkpoints_of_earlier_releases_load(caplog):
    """Logits, masks and the last random numbers of a mask, by the names of releases 1.x to 2.6."""
    state = {f"nncf_module.{name}": value for name, value in Net().state_dict().items()}
    logits = {name: torch.randn_like(state[f"nncf_module.{name}.weight"]) for name in NAMES}
    for name, own in logits.items():
        old = {"_mask": own, "_binary_mask": (own > 0).float(), "uniform": torch.zeros(1)}
        state |= {f"nncf_module.{name}.pre_ops.0.op.{key}": value for key, value in old.items()}
    controller, model = sparsified(Net())
    nncf.load_state(model, state, is_resume=True)
    assert "names of an earlier release" in caplog.text
    for own, mask in zip(logits.values(), controller.masks.values(), strict=True):
        assert torch.equal(own, mask.logits)
        assert torch.equal(own > 0, mask.kept())
