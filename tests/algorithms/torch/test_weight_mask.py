# SPDX-License-Identifier: Apache-2.0
"""The mask itself: forward, gradient, what it bakes, what averages of it are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nncf.algorithms.torch.weight_mask import WeightMask

KEPT = torch.tensor([[True, False, True], [False, False, True]])


def mask_of(kept=KEPT):
    mask = WeightMask(tuple(kept.shape))
    mask.keep(kept)
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dropped_elements_are_positive_zeros_without_gradient(dtype):
    """Kept elements pass to the bit with their gradient, dropped ones are +0 even from infinity."""
    weight = torch.tensor([[1.5, -2, 3], [-torch.inf, 5, -6]], dtype=dtype, requires_grad=True)
    mask = mask_of()
    output = mask(weight)
    assert output.dtype is dtype
    assert output.tolist() == [[1.5, 0, 3], [0, 0, -6]]
    assert not torch.signbit(output[~KEPT]).any()
    (output * 2).sum().backward()
    assert weight.grad.tolist() == [[2, 0, 2], [0, 0, 2]]
    assert torch.equal(mask.bake(weight), output)
    assert torch.equal(mask.native()(weight), output)
    assert int(mask.zeros(weight)) == 3


def test_a_new_mask_keeps_everything():
    """Before anything is chosen the weight passes."""
    mask = WeightMask((2, 3))
    assert mask.kept().all()
    assert mask.describe()["dropped"] == 0
    assert "0 of 6 dropped" in repr(mask)


def test_the_buffer_has_a_byte_per_weight_and_round_trips():
    """One byte per weight in the state dict, the same mask after loading."""
    mask = mask_of()
    state = mask.state_dict()
    assert {name: value.element_size() for name, value in state.items()} == {"mask": 1}
    twin = WeightMask((2, 3))
    twin.load_state_dict(state)
    assert torch.equal(twin.kept(), KEPT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_masks_of_ones_and_zeros_load(dtype):
    """Masks as other programs save them, of any type, are understood."""
    mask = WeightMask((2, 3))
    mask.load_state_dict({"mask": KEPT.to(dtype)})
    assert torch.equal(mask.kept(), KEPT)
    assert mask.state_dict()["mask"].dtype is torch.int8


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["equal", "moving"])
def test_averages_of_masks_are_votes(average):
    """Averaged over copies with their buffers, what most copies keep is kept."""
    model = nn.Sequential(mask_of())
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    for _ in range(8):
        averaged.update_parameters(model)
    model[0].keep(~KEPT)
    averaged.update_parameters(model)
    assert torch.equal(averaged.module[0].kept(), KEPT)
