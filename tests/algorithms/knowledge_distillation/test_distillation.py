# SPDX-License-Identifier: Apache-2.0
"""The compressed model learns from its teacher, and from nobody else."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf.algorithms.knowledge_distillation.torch import (
    mse_loss,
    softmax_loss,
)
from tests.algorithms.knowledge_distillation.students import (
    Small,
    Told,
    config,
    distilled,
    hook_counts,
    images,
)

INT8 = {"algorithm": "quantization"}


def test_the_teacher_is_the_model_as_it_was_given() -> None:
    """The loss compares with a copy made before quantization, in evaluation mode."""
    model = Small()
    original = copy.deepcopy(model).eval()
    controller, model = distilled(model, INT8, temperature=3.0, scale=0.5)
    output = model(images())
    loss = controller.loss()
    with torch.no_grad():
        expected = 0.5 * softmax_loss(output, original(images()), temperature=3.0)
    assert torch.equal(loss.detach(), expected)
    assert not torch.equal(original(images()), model.eval()(images()))


def test_the_teacher_stays_as_it_was() -> None:
    """Training changes neither the teacher's weights nor its batch norm statistics."""
    controller, model = distilled(Small())
    teacher = controller.teaching.teacher
    before, fingerprint = copy.deepcopy(teacher.module.state_dict()), teacher.fingerprint
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        loss = model(images(step)).square().mean() + controller.loss()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in teacher.module.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.module.parameters())
    assert not any(module.training for module in teacher.module.modules())
    assert teacher.fingerprint == fingerprint
    assert not torch.equal(model.norm.running_mean, teacher.module.norm.running_mean)


def test_the_teacher_is_no_part_of_the_model() -> None:
    """Neither parameters, buffers nor state dict of the model have anything of it."""
    model = Small()
    keys, names = list(model.state_dict()), [name for name, _ in model.named_parameters()]
    controller, model = distilled(model)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == names
    ours = {id(p) for p in model.parameters()}
    assert not any(id(p) in ours for p in controller.teaching.teacher.module.parameters())


def test_loss_is_the_mean_of_the_forwards_since_the_last_call() -> None:
    """Gradient accumulation gives the mean, with its gradient; each forward counts once."""
    controller, model = distilled(Small(), type="mse")
    model.dropout.p = 0.0
    losses = []
    for seed in range(3):
        model(images(seed))
        losses.append(controller.loss().detach())
    twin, other = distilled(copy.deepcopy(strip(controller)), type="mse", teacher=Small())
    assert float(controller.loss()) == 0
    for seed in range(3):
        model(images(seed))
    found = controller.loss()
    assert torch.equal(found.detach(), torch.stack(losses).mean())
    found.backward()
    assert model.head.weight.grad is not None
    assert float(controller.loss()) == 0
    other(images())
    assert float(twin.loss().detach()) > 0


def strip(controller: Any) -> nn.Module:
    return controller.strip()


@pytest.mark.parametrize("how", ["evaluation", "no gradients"])
def test_forwards_that_do_not_train_cost_nothing(how: str) -> None:
    """In evaluation mode and without gradients the teacher does not run."""
    controller, model = distilled(Small())
    calls = []
    controller.teaching.teacher.module.register_forward_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(how == "evaluation"):
        model.train(how != "evaluation")
        model(images())
    assert calls == []
    assert float(controller.loss()) == 0
    model.train()(images())
    assert calls == [1]


def test_a_registered_teacher_teaches() -> None:
    """Another, larger model teaches; its weights are shared, its modes and flags left alone."""
    teacher = Small(width=12)
    weights = [p.detach().clone() for p in teacher.parameters()]
    controller, model = distilled(Small(), teacher=teacher, type="mse")
    output = model(images())
    found = controller.loss()
    found.backward()
    assert teacher.training
    assert teacher.norm.training
    assert hook_counts(teacher) == hook_counts(Small(width=12))
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(p, w) for p, w in zip(teacher.parameters(), weights, strict=True))
    shared = controller.teaching.teacher.module
    assert shared.conv.weight is teacher.conv.weight
    with torch.no_grad():
        assert torch.equal(found.detach(), mse_loss(output, teacher.eval()(images())))


REFUSED = {
    "classes": (
        Small(classes=7),
        "the shape \\(1, 7\\) at the teacher and \\(1, 4\\) at the model",
    ),
    "inputs": (nn.Linear(3, 4), "failed on the inputs of the model: RuntimeError"),
    "no model": ("resnet", "teacher is of type str. Expected a torch.nn.Module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_teacher_that_does_not_fit_is_refused_before_training(name: str) -> None:
    """The error says what does not match, and the model is as it was."""
    teacher, message = REFUSED[name]
    model = Small()
    hooks, state = hook_counts(model), copy.deepcopy(model.state_dict())
    with pytest.raises(nncf.ModelError, match=message):
        distilled(model, INT8, teacher=teacher)
    assert hook_counts(model) == hooks
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    distilled(model, INT8)


def test_outputs_without_classes_are_refused_for_softmax() -> None:
    """A model whose output has not two axes is told to use mse, before training."""
    model = Told(lambda _, x, y: y[:, :, None])
    with pytest.raises(nncf.ModelError, match=r"expected|needs an output of \[batch, classes\]"):
        distilled(model)
    controller, model = distilled(model, type="mse")
    model(images(side=4)).sum().backward()
    assert controller.statistics().knowledge_distillation.agreement is None


def test_nested_outputs_are_compared_by_path() -> None:
    """Every floating point tensor in dicts and tuples is compared with its counterpart."""
    model = Told(lambda m, x, y: {"scores": y, "more": (y * 2, x.argmax()), "one": y.sum()})
    original = copy.deepcopy(model)
    controller, model = distilled(model, INT8, type="mse")
    found, expected = model(images(side=4)), original(images(side=4))
    total = mse_loss(found["scores"], expected["scores"])
    total = total + mse_loss(found["more"][0], expected["more"][0])
    assert torch.allclose(controller.loss(), total)


def test_auxiliary_outputs_of_training_are_not_taught() -> None:
    """A model that returns more in training than in evaluation learns its first output."""
    model = Told(lambda m, x, y: (y, y * 3) if m.training else y)
    original = copy.deepcopy(model).eval()
    controller, model = distilled(model, INT8, type="mse")
    first, _ = model(images(side=4))
    expected = mse_loss(first, original(images(side=4)))
    assert torch.equal(controller.loss(), expected)


def test_outputs_that_stop_matching_are_named() -> None:
    """Where training returns something else altogether, the first training forward says so."""
    model = Told(lambda m, x, y: {"loss": y.sum(1)} if m.training else {"scores": y})
    _, model = distilled(model)
    with pytest.raises(nncf.ModelError, match=r"returns scores \(5, 4\), the model loss \(5,\)"):
        model(images(side=4))


def test_a_model_that_writes_into_its_input_sees_its_own_input() -> None:
    """The teacher of a model that works in place gets copies, and both get the user's values."""
    model = Told(lambda m, x, _: m.head(x.mul_(2).flatten(1)))
    original = copy.deepcopy(model)
    controller, model = distilled(model, type="mse")
    given = images(side=4)
    output = model(given)
    assert torch.equal(given, images(side=4) * 2)
    assert torch.equal(output, original(images(side=4)))
    assert float(controller.loss()) == 0


def test_strip_leaves_a_plain_model() -> None:
    """After strip the class is the model's, without hooks, parts or keys of distillation."""
    controller, model = distilled(Small(), features=["{re}conv2d"])
    stripped = controller.strip()
    assert hook_counts(stripped) == hook_counts(Small())
    assert list(stripped.state_dict()) == list(Small().state_dict())
    assert not hasattr(stripped, "compression")
    assert hasattr(model, "compression")
    assert torch.equal(stripped.eval()(images()), model.eval()(images()))


def test_strip_beside_quantization_keeps_the_quantizers_only() -> None:
    """Nothing of distillation is left in a stripped quantized model, in place or not."""
    controller, model = distilled(Small(), INT8, features=["{re}conv2d"])
    for stripped in (controller.strip(), nncf.strip(model, do_copy=False)):
        assert [name for name, _ in stripped.compression.named_children()] == ["ops"]
        stripped.train()(images())
    assert float(controller.loss()) == 0


def test_statistics_show_the_last_forward() -> None:
    """Loss and agreement of the last training forward, in the table and for TensorBoard."""
    controller, model = distilled(Small())
    found = controller.statistics().knowledge_distillation
    assert (found.loss, found.agreement) == (None, None)
    assert found.tensorboard() == {}
    output = model(images())
    same = output.argmax(1) == controller.teaching.teacher.module(images()).argmax(1)
    loss = float(controller.loss())
    statistics = controller.statistics()
    drawn = {"knowledge_distillation/loss": loss,
             "knowledge_distillation/teacher_agreement": pytest.approx(float(same.float().mean()))}  # fmt: skip
    assert statistics.knowledge_distillation.tensorboard() == drawn
    assert f"{loss:.4f}" in statistics.to_str()


def test_stage_and_rate() -> None:
    """Distillation is complete from the start and has no rate to set."""
    controller, _ = distilled(Small())
    assert controller.compression_stage() is nncf.CompressionStage.FULLY_COMPRESSED
    assert controller.compression_rate is None
    controller.compression_rate = 0.5
    assert (controller.compression_rate, controller.maximal_compression_rate) == (None, 1.0)


def test_forgotten_losses_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A loop that never asks for the loss is told after many forwards."""
    _, model = distilled(Small(), type="mse")
    caplog.set_level(logging.WARNING, "nncf")
    for _ in range(256):
        model(images(count=2))
    assert "of 256 forwards in training mode wait for controller.loss()" in caplog.text


def test_options_that_do_nothing_are_refused() -> None:
    """Softmax settings beside mse are errors, settings of an unused cache a remark."""
    for key in ("temperature", "gradient_limit"):
        with pytest.raises(nncf.ConfigError, match=f'{key}.* is given, but type is "mse"'):
            config(type="mse", **{key: 2.0})
    (remark,) = config(cache_limit_mib=5).options.compression[0].remarks()
    assert "has no effect" in remark.text
