# SPDX-License-Identifier: Apache-2.0
"""Call models and compare what they return, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tests.contract.models import Example, logits


def call(model: nn.Module, example: Example, seed: int = 9) -> Any:
    """Return the model's output for one batch, without gradients."""
    args, kwargs = example.batch(seed)
    with torch.no_grad():
        return model(*args, **kwargs)


def gradients(model: nn.Module, given: Any) -> dict[str, torch.Tensor]:
    """Return the gradients of all parameters for an example's batch, or for ``(args, kwargs)``."""
    args, kwargs = given.batch(9) if isinstance(given, Example) else given
    model.zero_grad()
    logits(model(*args, **kwargs)).square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert found
    return found


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors have the same type and the same values."""
    return one.dtype == other.dtype and torch.equal(one.detach(), other.detach())


def same(one: Any, other: Any) -> bool:
    """Tell whether two nested structures have equal leaves, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def near(one: Any, other: Any) -> bool:
    """Tell whether two nested structures have equal leaves but for the last bits of tensors."""
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(near(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(near, one, other))
    return bool(one == other)


def disturbed(value: torch.Tensor) -> torch.Tensor:
    """Return other values for a tensor of a CompressionOp: a wider range, the opposite mask.

    A range counts by its size, so that its sign makes no difference; logits change sides by it.
    """
    return value * -1.7 if value.is_floating_point() else int(value.max()) - value


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Change everything that the CompressionOps of a model have learned or chosen.

    Where they have no state, the model's own parameters change.
    """
    added = [*model.compression.parameters(), *model.compression.buffers()]
    for tensor in added or model.parameters():
        tensor.copy_(disturbed(tensor))


def stripped_same(case: Any, plain: nn.Module, example: Example, expected: Any) -> bool:
    """Tell whether a stripped model computes what is expected, to the last bit where it can."""
    found = call(plain, example)
    is_plain = all(name != "compression" for name, _ in plain.named_children())
    if case.exact_strip and not (example.fused and is_plain):
        return same(found, expected)
    return near(found, expected)


def unequal(one: Any, other: Any) -> bool:
    """Tell whether two outputs differ."""
    return not same(one, other)
