# SPDX-License-Identifier: Apache-2.0
"""Binarizers as modules: values, gradients, the first scale, state; beside the numpy formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import nncf
from nncf.algorithms.binarization.formula import (
    activation_gradients,
    binarize_activation,
    binarize_weight,
    first_scale,
)
from nncf.algorithms.binarization.scheme import Binarizer
from nncf.algorithms.binarization.torch import ActivationBinarizer, WeightBinarizer


def weight_of(*shape: int) -> torch.Tensor:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    weight.flatten()[::7] = 0
    return weight.requires_grad_()


def activation(
    shape: tuple[int, ...] = (4, 1, 1), multiplier: float | None = None
) -> ActivationBinarizer:
    """Return a binarizer whose scale is 1.5 and whose thresholds differ."""
    op = ActivationBinarizer(Binarizer("threshold", 1, multiplier), shape)
    op.set_range(torch.zeros(1), torch.tensor([1.5]))
    with torch.no_grad():
        op.logit_of_threshold.copy_(torch.linspace(-1, 1, shape[0]).reshape(shape))
    return op


@pytest.mark.parametrize("shape", [(5, 3, 3), (5, 4, 3, 3), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("rule", ["xnor", "dorefa"])
def test_weights_have_the_sign_and_the_mean_magnitude(shape, rule):
    """Values are those of the formula, zeros are negative, the gradient passes as it is."""
    axis = 0 if rule == "xnor" else None
    op, weight = WeightBinarizer(Binarizer(rule, axis), (1,)), weight_of(*shape)
    found = op(weight)
    expected = binarize_weight(weight.detach().double().numpy(), per_channel=axis == 0)
    assert np.allclose(found.detach(), expected, rtol=1e-6)
    assert len(found[0].abs().unique()) == 1
    assert bool((found[weight == 0] < 0).all())
    gradient = torch.randn(shape)
    found.backward(gradient)
    assert torch.equal(weight.grad, gradient)
    assert torch.equal(op.bake(weight), found.detach())
    assert torch.equal(op.native()(weight), found)


def test_activations_and_their_gradients_are_those_of_the_formula():
    """Forward, and backward for the values, the scale and the thresholds by their logarithms."""
    op = activation(multiplier=2.0)
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(2)) * 1.5
    x.requires_grad_()
    scale, threshold = float(op.scale()), op.logit_of_threshold.detach().sigmoid().double().numpy()
    gradient = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(3))
    found = op(x)
    found.backward(gradient)
    given = x.detach().double().numpy()
    expected = binarize_activation(given, scale=scale, threshold=threshold)
    assert np.allclose(found.detach(), expected)
    assert {0.0, scale} == set(found.unique().tolist())
    dx, ds, dt = activation_gradients(
        gradient.double().numpy(), given, scale=scale, threshold=threshold
    )
    assert np.allclose(x.grad, dx)
    pace = 2 / (4 * 5 * 5) ** 0.5
    assert float(op.logarithm_of_scale.grad) == pytest.approx(pace * ds * scale, rel=1e-5)
    by_channel = dt.sum((0, 2, 3))[:, None, None] * threshold * (1 - threshold)
    assert np.allclose(op.logit_of_threshold.grad, 2 / 5 * by_channel, rtol=1e-4)


def test_gradients_of_the_formula_by_hand():
    """Inside, above and below the range the documented factors of the gradient hold."""
    x = np.array([-1.0, 0.3, 0.9, 2.5])
    dx, ds, dt = activation_gradients(np.ones(4), x, scale=2.0, threshold=np.array(0.25))
    assert dx.tolist() == [0, 1, 1, 0]  # the threshold is 0.5
    assert ds == pytest.approx((0 + 1) / 2 + (0 - 0.3) / 2 + (2 - 0.9) / 2 + 1)
    assert dt.tolist() == [0, -1, -1, 0]


def test_the_first_training_forward_sets_the_scale():
    """Of 10,000 values the tenth largest; evaluation sets nothing, and later data neither."""
    op = ActivationBinarizer(Binarizer("threshold", 1), (10, 1, 1))
    x = torch.rand(10, 10, 10, 10, generator=torch.Generator().manual_seed(4))
    op.eval()(x)
    assert float(op.scale()) == 1
    op.train()(x)
    tenth = float(x.flatten().sort(descending=True).values[9])
    assert float(op.scale()) == pytest.approx(tenth)
    assert first_scale(x.numpy()) == pytest.approx(tenth)
    assert torch.allclose(op.threshold(), op.scale() / 2)
    op(10 * x)
    assert float(op.scale()) == pytest.approx(tenth)


def test_data_without_positive_values_leaves_a_usable_scale():
    """Where nothing lies above zero the scale is 1: it can be trained, and is no NaN."""
    op = ActivationBinarizer(Binarizer("threshold", 1), (2, 1, 1)).train()
    out = op(-torch.rand(1, 2, 3, 3))
    assert float(op.scale()) == 1
    assert torch.equal(out, torch.zeros_like(out))
    with pytest.raises(nncf.DataError, match="NaN or infinite"):
        op.set_range(torch.zeros(1), torch.tensor([float("nan")]))


def test_state_says_whether_the_scale_has_come():
    """A state saved before the first training forward makes the copy wait for its own data."""
    waiting = ActivationBinarizer(Binarizer("threshold", 1), (4, 1, 1))
    twin = activation()
    twin.load_state_dict(waiting.state_dict())
    assert not twin.initialized
    twin.load_state_dict(activation().state_dict())
    assert twin.initialized
    assert float(twin.scale()) == pytest.approx(1.5)


def test_without_a_batch_axis():
    """A single sample of three axes keeps them."""
    op, x = activation(), torch.rand(4, 5, 5)
    assert op(x).shape == x.shape
    assert torch.equal(op(x), op(x[None])[0])
    assert torch.equal(op.native()(x), op(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    """The result has the dtype of the input, and the stripped form the same bits."""
    op, x = activation(), torch.rand(2, 4, 5, 5).to(dtype)
    assert op(x).dtype == dtype
    assert torch.equal(op.native()(x), op(x))


def test_disabled_passes_everything_and_parameters_get_zero():
    """Switched off, values pass as they are; a distributed run finds gradients all the same."""
    op, x = activation(), torch.rand(2, 4, 5, 5)
    op.enabled = False
    out = op(x)
    assert torch.equal(out, x)
    out.sum().backward()
    assert float(op.logit_of_threshold.grad.abs().sum()) == 0
    weights = WeightBinarizer(Binarizer("xnor", 0), (3, 1, 1, 1))
    weights.enabled = False
    weight = weight_of(3, 2, 3, 3)
    assert torch.equal(weights.bake(weight), weight)


def test_compiled_in_training():
    """A compiled layer in training gives the values and gradients of the eager one."""
    torch._dynamo.reset()
    op, x = activation(), torch.rand(2, 4, 5, 5, requires_grad=True)
    twin = copy.deepcopy(op)
    compiled = torch.compile(nn.Sequential(op), fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    expected = twin(x)
    expected.sum().backward()
    assert torch.allclose(op.logit_of_threshold.grad, twin.logit_of_threshold.grad)
    assert torch.equal(compiled(x), expected)


def test_a_replica_says_that_it_cannot_keep_a_scale():
    """In DataParallel a first scale would be lost with the replica: the error tells two ways out."""
    op = ActivationBinarizer(Binarizer("threshold", 1), (4, 1, 1)).train()
    op._is_replica = True
    with pytest.raises(nncf.ModelError, match="before wrapping"):
        op(torch.rand(2, 4, 5, 5))
    assert not op.initialized
