# SPDX-License-Identifier: Apache-2.0
"""The learned mask as a module: its formulas, its random draws, freezing, copies and state."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from nncf.algorithms.rb_sparsity.mask import LearnedMask
from nncf.algorithms.rb_sparsity.torch import LearnedWeightMask
from nncf.torch import kernels

SHAPE = (20, 30)


def made(multiplier: float | None = None, seed: int = 0) -> LearnedWeightMask:
    """Return a mask with logits around zero, in training mode."""
    torch.manual_seed(seed)
    mask = LearnedWeightMask(LearnedMask(multiplier), SHAPE, "conv|WEIGHT|MASK")
    with torch.no_grad():
        mask.logits.normal_()
    return mask


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) + 3)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def backward(mask: LearnedWeightMask, w: torch.nn.Parameter) -> tuple[torch.Tensor, ...]:
    """Return output, and the gradients of weight and logits for a fixed output gradient."""
    w.grad = mask.logits.grad = None
    out = mask(w)
    out.backward(torch.linspace(-1, 1, out.numel()).view(SHAPE))
    return out.detach(), w.grad, mask.logits.grad


def test_new_mask_keeps_nearly_everything() -> None:
    """At the start evaluation keeps all, and training drops one weight in a hundred."""
    mask = LearnedWeightMask(LearnedMask(), (500, 500), "a")
    assert bool(mask.kept().all())
    dropped = (mask(torch.ones(500, 500)) == 0).float().mean()
    assert float(dropped) == pytest.approx(0.01, abs=0.001)
    assert torch.equal(mask.eval()(torch.ones(500, 500)), torch.ones(500, 500))


@pytest.mark.parametrize("training", [True, False])
def test_forward_and_gradients_follow_the_formulas(training: bool) -> None:
    """Output, weight gradient and straight-through logit gradient equal the numpy formulas."""
    mask, w = made(3.0).train(training), weight()
    u = kernels.uniform(mask.key, SHAPE).double().numpy() if training else 0.5
    z = mask.logits.detach().double().numpy() + np.log(u / (1 - u))
    out, to_weight, to_logits = (part.numpy() for part in backward(mask, w))
    value, gradient = w.detach().numpy(), torch.linspace(-1, 1, w.numel()).view(SHAPE).numpy()
    np.testing.assert_array_equal(out, np.where(z > 0, value, 0))
    np.testing.assert_array_equal(to_weight, np.where(z > 0, gradient, 0))
    slope = sigmoid(z) * (1 - sigmoid(z))
    np.testing.assert_allclose(to_logits, 3 * gradient * value * slope, rtol=2e-4, atol=1e-7)


def test_masks_are_drawn_with_their_probabilities() -> None:
    """Over many draws each weight is kept as often as the sigmoid of its logit says."""
    mask, ones = made(), torch.ones(SHAPE)
    total = torch.zeros(SHAPE)
    for _ in range(2000):
        total += mask(ones).detach()
        mask.draw()
    error = total / 2000 - mask.logits.detach().sigmoid()
    assert error.abs().max() < 0.05  # four and a half standard deviations
    assert float(error.square().mean().sqrt()) == pytest.approx(0.0095, abs=0.0015)


def test_a_mask_lasts_until_the_loss_has_gone_backward() -> None:
    """Forwards, evaluation and other backward passes draw nothing; the count's backward does."""
    mask, w = made(), weight()
    first = mask(w).detach()
    backward(mask, w)
    mask.eval()(w)
    assert torch.equal(mask.train()(w), first)
    count = mask.kept_count()
    assert torch.equal(mask(w), first)
    with torch.no_grad():
        mask.kept_count()
    assert torch.equal(mask(w), first)
    count.backward()
    assert not torch.equal(mask(w), first)


def test_the_next_mask_waits_for_the_whole_backward_pass() -> None:
    """What is computed again late in the same backward pass still sees the old mask."""
    mask, w = made(), weight()
    first, seen = mask(w).detach(), []

    def again(_: torch.Tensor) -> None:
        with torch.no_grad():
            seen.append(mask(w.detach()))

    w.register_hook(again)
    total = mask(w).sum() + mask.kept_count() * 0.5
    total.backward()
    assert torch.equal(seen[0], first)
    assert not torch.equal(mask(w).detach(), first)


def test_count_and_its_gradient() -> None:
    """The count is that of evaluation; its gradient is the slope of the sigmoid, times the factor."""
    mask = made(0.25)
    count = mask.kept_count()
    assert int(count.detach()) == int((mask.logits > 0).sum())
    count.backward()
    s = sigmoid(mask.logits.detach().double().numpy())
    np.testing.assert_allclose(mask.logits.grad.numpy(), 0.25 * s * (1 - s), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_of_weights(dtype: torch.dtype) -> None:
    """Output and gradient have the weight's type, the logits keep theirs."""
    mask, w = made(), torch.nn.Parameter(weight().detach().to(dtype))
    out = mask(w)
    out.sum().backward()
    assert out.dtype is w.grad.dtype is dtype
    assert mask.logits.grad.dtype is torch.float32
    assert bool((mask.logits.grad != 0).any())
    assert mask.half()(w).dtype is dtype


def test_extreme_logits_give_no_nan() -> None:
    """Infinitely sure masks neither break the forward nor the gradients."""
    mask, w = made(), weight()
    with torch.no_grad():
        mask.logits[:10], mask.logits[10:] = 1e30, float("-inf")
    out, *gradients = backward(mask, w)
    assert torch.equal(out != 0, mask.logits > 0)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_frozen_mask_stays_whatever_happens_to_the_logits() -> None:
    """Frozen, training and evaluation use one mask; logits get the gradient zero and may drift."""
    mask, w = made(), weight()
    fixed = mask.kept()
    mask.freeze(True)
    out, _, to_logits = backward(mask, w)
    assert torch.equal(out, torch.where(fixed, w.detach(), 0.0))
    assert torch.equal(to_logits, torch.zeros(SHAPE))  # none at all would stop DDP
    with torch.no_grad():
        mask.logits.neg_()
    mask.freeze(True)
    assert torch.equal(mask.eval()(w), out)
    assert torch.equal(mask.bake(w), out)
    assert mask.probability_sum() == int(fixed.sum())
    mask.freeze(False)
    assert torch.equal(mask.kept(), ~fixed)


def test_state_is_the_mask_that_evaluation_uses() -> None:
    """The state dict has logits, key and the current mask, and restores all to the bit."""
    mask = made()
    with torch.no_grad():
        mask.logits.neg_()
    state = mask.state_dict()
    assert set(state) == {"logits", "mask", "key"}
    assert torch.equal(state["mask"] > 0, mask.kept())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    twin = made(seed=7)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(weight()), mask(weight()))


def test_copies_draw_the_same_and_go_their_own_ways() -> None:
    """Deepcopy and pickle continue with the same masks, independently."""
    mask, w = made(), weight()
    mask.draw()
    for copied in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        twin = copied(mask)
        assert torch.equal(twin(w), mask(w))
        mask.draw()
        assert not torch.equal(twin(w), mask(w))
        twin.draw()
        assert torch.equal(twin(w), mask(w))


def test_ops_and_seeds_draw_differently() -> None:
    """The first key follows from the seed and the name, without touching the random stream."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    names = [LearnedWeightMask(LearnedMask(), SHAPE, name) for name in ("a", "b", "a")]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(names[0].key, names[2].key)
    assert not torch.equal(names[0].key, names[1].key)
    torch.manual_seed(12)
    assert not torch.equal(names[0].key, LearnedWeightMask(LearnedMask(), SHAPE, "a").key)


def test_meta_device() -> None:
    """On the meta device a mask can be built, printed, saved and moved."""
    with torch.device("meta"):
        mask = LearnedWeightMask(LearnedMask(), SHAPE, "a").to("meta")
    assert set(mask.state_dict()) == {"logits", "mask", "key"}
    assert "20 × 30" in repr(mask)
