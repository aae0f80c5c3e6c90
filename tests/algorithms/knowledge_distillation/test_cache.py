# SPDX-License-Identifier: Apache-2.0
"""The teacher's answers to samples that come again are taken from memory, exactly."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf.torch.answers import AnswerCache
from tests.algorithms.knowledge_distillation.students import Small, Told, config, distilled, images


def counted(controller: Any) -> list[int]:
    """Return a list that grows with each forward of the teacher."""
    calls: list[int] = []
    controller.teaching.teacher.module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def loss_of(controller: Any, model: nn.Module, batch: torch.Tensor) -> float:
    model(batch)
    return float(controller.loss().detach())


def pair(**options: Any) -> tuple[Any, nn.Module, Any, nn.Module]:
    """Return a student with a cache and one without, both without randomness."""
    made = []
    for cached in (True, False):
        torch.manual_seed(0)
        teacher = Small(width=9)
        controller, model = distilled(
            Small(), teacher=teacher, cache_teacher_outputs=cached, **options
        )
        model.dropout.p = 0.0
        made += [controller, model]
    return tuple(made)


def test_answers_from_memory_are_exact_in_any_order() -> None:
    """Shuffled batches of known samples get the teacher's bits, and the teacher does not run."""
    controller, model, other, twin = pair(type="mse")
    calls = counted(controller)
    samples = images(count=12)
    for part in samples.split(4):
        assert loss_of(controller, model, part) == loss_of(other, twin, part)
    assert len(calls) == 3
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for part in samples[order].split(4):
        assert loss_of(controller, model, part) == loss_of(other, twin, part)
    assert len(calls) == 3
    assert "12 samples" in controller.statistics().to_str()
    assert "12 of 24 found" in controller.statistics().to_str()


def test_features_are_cached_too() -> None:
    """Activations of the teacher come from memory with its outputs."""
    controller, model = distilled(
        Small(), teacher=Small(), type="mse", features=["{re}conv2d"], cache_teacher_outputs=True
    )
    model.dropout.p = 0.0
    calls = counted(controller)
    first, second = (loss_of(controller, model, images()) for _ in range(2))
    assert first == second
    assert len(calls) == 1


def test_a_batch_with_an_unknown_sample_runs_whole() -> None:
    """One new sample, or one other bit, and the teacher answers the batch itself."""
    controller, model, *_ = pair()
    calls = counted(controller)
    batch = images()
    loss_of(controller, model, batch)
    changed = batch.clone()
    changed[2, 0, 0, 0] = torch.nextafter(changed[2, 0, 0, 0], torch.tensor(2.0))
    loss_of(controller, model, changed)
    loss_of(controller, model, torch.cat([batch, images(7, count=1)]))
    assert len(calls) == 3
    loss_of(controller, model, batch)
    assert len(calls) == 3


def test_arguments_other_than_samples_count() -> None:
    """The same samples with another flag, or another shared tensor, are other questions."""
    cache = AnswerCache(1.0)
    asked = []

    def ask() -> Any:
        asked.append(1)
        return nncf.torch.answers.Answer({"": torch.rand(5, 3)})

    questions = [((images(),), {}), ((images(), True), {}), ((images(),), {"mask": torch.ones(3)}),
                 ((images(),), {"mask": torch.zeros(3)}), ((images().double(),), {})]  # fmt: skip
    answers = [cache.answer(*question, ask) for question in questions]
    assert len(asked) == len(questions)
    again = [cache.answer(*question, ask) for question in questions]
    assert len(asked) == len(questions)
    assert all(
        torch.equal(a.outputs[""], b.outputs[""]) for a, b in zip(answers, again, strict=True)
    )


def test_the_limit_ends_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is said once; memory is freed and the teacher runs, with the same losses."""
    controller, model, other, twin = pair(cache_limit_mib=100 / 2**20)
    caplog.set_level(logging.WARNING, "nncf")
    calls = counted(controller)
    for seed in (0, 1, 0, 1):
        assert loss_of(controller, model, images(seed)) == loss_of(other, twin, images(seed))
    assert len(calls) == 4
    assert caplog.text.count("reached after 5 samples") == 1
    assert "Raise cache_limit_mib" in controller.statistics().to_str()
    assert controller.teaching.teacher.cache.bytes == 0


def test_an_epoch_without_a_known_sample_ends_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    """Augmented data is noticed after the second epoch, and said."""
    controller, model, *_ = pair()
    caplog.set_level(logging.WARNING, "nncf")
    for epoch in range(3):
        controller.scheduler.epoch_step()
        assert ("Augmented samples" in caplog.text) == (epoch == 2)
        for batch in range(2):
            loss_of(controller, model, images(10 * epoch + batch))
    assert controller.teaching.teacher.cache.given_up


def test_repeated_data_keeps_the_cache() -> None:
    """Epochs over the same samples go on with it."""
    controller, model, *_ = pair()
    calls = counted(controller)
    for _ in range(4):
        controller.scheduler.epoch_step()
        loss_of(controller, model, images())
    assert not controller.teaching.teacher.cache.given_up
    assert len(calls) == 1


def test_a_teacher_that_mixes_samples_is_refused() -> None:
    """Batch norms without running statistics answer by batch: no cache, before training."""
    teacher = Small()
    teacher.norm = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(nncf.ModelError, match="the batch norm norm of the teacher has no running"):
        distilled(Small(), teacher=teacher, cache_teacher_outputs=True)


def test_answers_without_a_row_for_each_sample_are_refused() -> None:
    """An output that is not one row a sample cannot be cached, and the error says so."""
    model = Told(lambda m, x, y: y.t())
    _, model = distilled(model, type="mse", cache_teacher_outputs=True)
    with pytest.raises(nncf.ModelError, match=r"shape \(4, 5\) for a batch of 5"):
        model(images(side=4))


def test_a_copied_configuration_has_the_same_settings() -> None:
    """The limit is read in MiB and the cache is off unless asked for."""
    options = config().options.compression[0]
    assert (options.cache_teacher_outputs, options.cache_limit_mib) == (False, 1024.0)
    controller, _ = distilled(Small())
    assert controller.teaching.teacher.cache is None


def test_a_compiled_model_with_a_cache_learns_the_same() -> None:
    """The lookup is a break in the compiled graph; the losses are those of eager mode."""
    controller, model, other, twin = pair()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for seed in (0, 1, 0):
        found = loss_of(controller, compiled, images(seed))
        assert found == pytest.approx(loss_of(other, twin, images(seed)), rel=1e-6)
    assert "5 of 15 found" in controller.statistics().to_str()
