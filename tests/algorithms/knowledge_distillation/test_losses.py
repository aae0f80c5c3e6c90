# SPDX-License-Identifier: Apache-2.0
"""The losses of distillation against their formulas in numpy, double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nncf.algorithms.knowledge_distillation.torch import (
    Judge,
    mse_loss,
    normalized_mse_loss,
    softmax_loss,
)


def scores(seed: int, *shape: int, spread: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def expected(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """Return −mean(log softmax(s/T) · softmax(t/T)) · classes · T²."""
    s, t = (tensor.detach().double().numpy() / temperature for tensor in (student, teacher))
    products = np.log(softmax(s)) * softmax(t)
    return float(-products.mean() * s.shape[1] * temperature**2)


def judge(kind: str = "softmax", **given: Any) -> Judge:
    settings = {"scale": 1.0, "temperature": 1.0, "gradient_limit": None, "features": {}}
    return Judge(kind, **{**settings, **given})


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_softmax_loss_is_the_published_formula(temperature: float) -> None:
    """The loss is the mean cross-entropy of softened probabilities, times T²."""
    student, teacher = scores(1, 6, 10), scores(2, 6, 10)
    found = softmax_loss(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(expected(student, teacher, temperature), rel=1e-5)


def test_mse_losses_are_the_published_formulas() -> None:
    """Mean of squared differences, alone and relative to the teacher's mean square."""
    student, teacher = scores(1, 3, 4, 5), scores(2, 3, 4, 5)
    squares = ((student - teacher).double().numpy() ** 2).mean()
    power = (teacher.double().numpy() ** 2).mean()
    assert float(mse_loss(student, teacher)) == pytest.approx(squares, rel=1e-6)
    assert float(normalized_mse_loss(student, teacher)) == pytest.approx(squares / power, rel=1e-6)


def test_a_silent_feature_has_a_finite_loss() -> None:
    """A teacher's feature of zeros does not divide by zero."""
    student = torch.zeros(2, 3, requires_grad=True)
    loss = normalized_mse_loss(student, torch.zeros(2, 3))
    loss.backward()
    assert float(loss) == 0
    assert torch.equal(student.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Outputs of 16 bits give the loss of their values, not a rounded one."""
    student, teacher = scores(1, 6, 10).to(dtype), scores(2, 6, 10).to(dtype)
    found = softmax_loss(student, teacher, temperature=3.0)
    assert found.dtype is torch.float32
    assert float(found) == pytest.approx(expected(student, teacher, 3.0), rel=1e-5)
    assert mse_loss(student, teacher).dtype is torch.float32


def test_the_judge_adds_scaled_terms() -> None:
    """All outputs and features count, each with its scale."""
    outputs = [("a", scores(1, 4, 3).requires_grad_(), scores(2, 4, 3)),
               ("b", scores(3, 4, 5).requires_grad_(), scores(4, 4, 5))]  # fmt: skip
    feature = ("f", scores(5, 4, 2, 2).requires_grad_(), scores(6, 4, 2, 2))
    other = ("g", scores(7, 4, 2).requires_grad_(), scores(8, 4, 2))
    kinds = {"f": ("normalized_mse", 3.0), "g": ("mse", 0.25)}
    found = judge(scale=0.5, temperature=2.0, features=kinds)(outputs, [feature, other])
    total = sum(0.5 * softmax_loss(one, two, temperature=2.0) for _, one, two in outputs)
    total += 3 * normalized_mse_loss(*feature[1:]) + 0.25 * mse_loss(*other[1:])
    assert torch.allclose(found, total)


def test_what_cannot_learn_does_not_count() -> None:
    """Tensors without gradient, of rank below two, and for softmax of other ranks are left out."""
    frozen = ("a", scores(1, 4, 3), scores(2, 4, 3))
    flat = ("b", scores(1, 4).requires_grad_(), scores(2, 4))
    image = ("c", scores(1, 4, 3, 2).requires_grad_(), scores(2, 4, 3, 2))
    assert judge()([frozen, flat, image], []) is None
    assert judge("mse")([frozen, flat], []) is None
    assert judge("mse", scale=2.0)([frozen, flat, image], []) == 2 * mse_loss(*image[1:])


def gradient(student: torch.Tensor, teacher: torch.Tensor, **given: Any) -> torch.Tensor:
    student = student.clone().requires_grad_()
    softmax_loss(student, teacher, **given).backward()
    return student.grad


def test_the_gradient_limit_keeps_value_and_direction() -> None:
    """Limited, the loss is the same number and its gradient the same one, but no longer than T=1's."""
    student, teacher = scores(1, 8, 10), scores(2, 8, 10)
    plain = gradient(student, teacher, temperature=5.0)
    limited = gradient(student, teacher, temperature=5.0, gradient_limit=0.5)
    bound = 0.5 * gradient(student, teacher, temperature=1.0).norm()
    assert plain.norm() > bound
    assert float(limited.norm()) == pytest.approx(float(bound), rel=1e-4)
    assert torch.allclose(limited / limited.norm(), plain / plain.norm(), atol=1e-6)
    values = [float(softmax_loss(student, teacher, temperature=5.0, gradient_limit=limit))
              for limit in (None, 0.5)]  # fmt: skip
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_the_gradient_limit_leaves_short_gradients_alone() -> None:
    """At temperature 1 a limit of 1 changes no gradient."""
    student, teacher = scores(1, 8, 10), scores(2, 8, 10)
    plain = gradient(student, teacher)
    assert torch.allclose(gradient(student, teacher, gradient_limit=1.0), plain, atol=1e-8)


def test_the_gradient_limit_follows_loss_scaling() -> None:
    """A loss that is scaled before the backward pass gives a gradient scaled as much."""
    student, teacher = scores(1, 8, 10).requires_grad_(), scores(2, 8, 10)
    loss = softmax_loss(student, teacher, temperature=5.0, gradient_limit=1.0)
    (one,) = torch.autograd.grad(loss, student, retain_graph=True)
    (other,) = torch.autograd.grad(1024 * loss, student)
    assert torch.allclose(1024 * one, other)
