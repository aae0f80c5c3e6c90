# SPDX-License-Identifier: Apache-2.0
"""Runs are resumed with their own teacher; copies, devices, compilers and checkpoints get along."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nncf
from tests.algorithms.knowledge_distillation.students import (
    Small,
    config,
    distilled,
    images,
)

INT8 = {"algorithm": "quantization"}


def saved(features: Any = ()) -> tuple[nn.Module, Any, Any]:
    """Return the original model, and the states of a trained one."""
    original = Small()
    controller, model = distilled(copy.deepcopy(original), INT8, features=features)
    (model(images()).sum() + controller.loss()).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return original, controller.get_compression_state(), model.state_dict()


def test_resuming_with_the_original_model_goes_on() -> None:
    """The same teacher is found again when the original model is passed again."""
    original, state, weights = saved(["{re}conv2d"])
    controller, model = distilled(original, INT8, state=state, features=["{re}conv2d"])
    nncf.load_state(model, weights, is_resume=True)
    model(images())
    assert float(controller.loss().detach()) > 0
    assert controller.get_compression_state() == state


def test_resuming_with_another_teacher_is_refused_in_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From random weights the model evaluates, warned of; a training forward is an error."""
    _, state, weights = saved()
    caplog.set_level(logging.WARNING, "nncf")
    controller, model = distilled(Small(), INT8, state=state)
    nncf.load_state(model, weights, is_resume=True)
    assert "Evaluation and export need no teacher" in caplog.text
    model.eval()(images())
    assert controller.get_compression_state() == state
    with pytest.raises(nncf.CheckpointError, match=r"register it: register_default_init_args"):
        model.train()(images())


def test_resuming_with_the_original_registered_goes_on() -> None:
    """The original model can be registered where the model itself starts from other weights."""
    original, state, weights = saved()
    controller, model = distilled(Small(), INT8, state=state, teacher=original)
    nncf.load_state(model, weights, is_resume=True)
    model(images())
    assert float(controller.loss().detach()) > 0


def test_resuming_with_other_features_is_refused() -> None:
    """The features of the saved run have to be those of the configuration."""
    original, state, _ = saved(["{re}conv2d"])
    with pytest.raises(nncf.CheckpointError, match="saved with other features"):
        distilled(original, INT8, state=state, features=["{re}relu"])


def test_copies_leave_the_teacher_behind() -> None:
    """Copies and pickles compute the same, are not taught, and hold no second teacher."""
    controller, model = distilled(Small())
    plain = len(pickle.dumps(Small().train()))
    data = pickle.dumps(model)
    assert len(data) < plain + 20_000
    model(images())
    for twin in (copy.deepcopy(model), pickle.loads(data)):
        assert twin.compression.teaching.teacher is None
        twin(images())
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin.eval()(images()), model.eval()(images()))
    taught = controller.loss().detach()
    model.train()
    assert len(controller.teaching.losses.take()) == 0
    assert float(taught) > 0


def test_the_teacher_follows_the_model() -> None:
    """What ``model.to`` does to the model happens to its teacher."""
    controller, model = distilled(Small())
    model.double()
    assert model(images().double()).dtype is torch.float64
    assert controller.loss().dtype is torch.float64
    assert controller.teaching.teacher.module.head.weight.dtype is torch.float64


def test_autocast_reaches_the_teacher() -> None:
    """Under autocast both run in lower precision, and the loss is in full precision."""
    controller, model = distilled(Small())
    seen = []
    controller.teaching.teacher.module.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    assert seen[0].dtype is torch.bfloat16
    loss = controller.loss()
    assert loss.dtype is torch.float32
    loss.backward()


def test_a_checkpointed_model_learns_the_same() -> None:
    """Recomputing the whole model gives the gradient of not doing so, and counts once."""
    found = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        controller, model = distilled(Small(), INT8, type="mse", scale=10)
        output = checkpoint(model, images(), use_reentrant=False) if recomputes else model(images())
        (output.square().mean() + controller.loss()).backward()
        assert float(controller.loss()) == 0
        found.append(model.conv.weight.grad)
    assert torch.equal(*found)


def test_reentrant_checkpointing_of_the_whole_model_is_refused() -> None:
    """Its outputs cannot be seen, and an error says what to write instead of learning nothing."""
    _, model = distilled(Small())
    output = checkpoint(model, images().requires_grad_(), use_reentrant=True)
    with pytest.raises(nncf.ModelError, match="use_reentrant=False"):
        output.sum().backward()


def replica_of(model: nn.Module) -> nn.Module:
    """Return what DataParallel makes of a model for one device."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            replica._modules[name] = copies[child]
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter.view_as(parameter))
    return copies[model]


def test_replicas_are_taught_together() -> None:
    """The loss after the forwards of several replicas is the mean over them, features included."""
    controller, model = distilled(Small(), type="mse", features=["{re}conv2d"], teacher=Small())
    model.dropout.p = 0.0
    single = []
    for seed in range(2):
        model(images(seed))
        single.append(controller.loss().detach())
    for seed in range(2):
        replica_of(model)(images(seed))
    found = controller.loss()
    assert torch.equal(found.detach(), torch.stack(single).mean())
    found.backward()
    assert model.conv.weight.grad is not None


@pytest.mark.parametrize("beside", [(), (INT8,)], ids=["alone", "int8"])
def test_a_compiled_model_is_taught(beside: Any) -> None:
    """One graph without breaks, the same loss and gradients, compiled once however losses pile up."""
    controller, model = distilled(Small(), *beside, type="mse", features=["{re}conv2d"], scale=3)
    model.dropout.p = 0.0
    state = copy.deepcopy(model.state_dict())
    model(images())
    expected = controller.loss()
    expected.backward()
    gradient, model.conv.weight.grad = model.conv.weight.grad, None
    model.load_state_dict(state)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(images())
    found = controller.loss()
    found.backward()
    assert torch.equal(found, expected)
    assert torch.allclose(model.conv.weight.grad, gradient, rtol=1e-5, atol=1e-7)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in range(3):
            compiled(images(seed))
    assert float(controller.loss().detach()) > 0


@pytest.mark.parametrize(
    ("bits", "options", "limit"),
    [
        (3, {"temperature": 5.0}, 1.0),
        (4, {"temperature": 5.0, "gradient_limit": 2.5}, 2.5),
        (8, {"temperature": 5.0}, None),
        (3, {"temperature": 1.0}, None),
    ],
)
def test_few_bits_limit_gradients(bits: int, options: Any, limit: float | None) -> None:
    """At a high temperature beside 4 bits or fewer, gradients are limited unless one says how."""
    section = {"algorithm": "quantization", "weights": {"bits": bits}}
    made = config(section, **options)
    made["target_device"] = "TRIAL"
    made = nncf.NNCFConfig.from_dict(dict(made))
    controller, _ = nncf.create_compressed_model(Small(), made, dump_graphs=False)
    assert controller.child_ctrls[0].teaching.judge.gradient_limit == limit


@pytest.mark.parametrize(("bits", "scale", "warns"), [(3, 1.0, 1), (3, 0.7, 0), (8, 1.0, 0)])
def test_few_bits_and_two_losses_in_full_are_warned_of(
    bits: int, scale: float, warns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside 4 bits or fewer, a scale that takes no weight from the task's loss is remarked."""
    section = {"algorithm": "quantization", "weights": {"bits": bits}}
    made = nncf.NNCFConfig.from_dict({**config(section, scale=scale), "target_device": "TRIAL"})
    nncf.create_compressed_model(Small(), made, dump_graphs=False)
    assert caplog.text.count("0.3 * task_loss + controller.loss()") == warns
