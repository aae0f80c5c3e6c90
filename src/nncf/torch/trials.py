# SPDX-License-Identifier: Apache-2.0
"""Trainings that are only trials: whatever they change is undone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from nncf.torch.calibration import same_random_streams
from nncf.torch.intercept import compression_of


@contextmanager
def trial(model: nn.Module, *loaders: object) -> Iterator[None]:
    """Inside, the model may be trained; afterwards nothing of it is left, also after a failure.

    Undone are values of parameters and buffers, gradients, what requires them, training flags
    and the random streams (also the loaders'). The gradients begin empty.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    parameters = [
        (p, p.data, p.detach().clone(), p.grad, p.requires_grad) for p in model.parameters()
    ]
    for parameter, *_ in parameters:
        parameter.grad = None
    with ExitStack() as stack:
        for loader in loaders or (None,):
            stack.enter_context(same_random_streams(loader))
        try:
            yield
        finally:
            _restore(parameters)
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                _write(buffer, value)
            for module, training in flags:
                module.training = training


def _restore(parameters: list[tuple[Any, ...]]) -> None:
    for parameter, home, value, gradient, trained in parameters:
        parameter.grad = None
        parameter.data = home  # the trial may have moved it to another device
        _write(parameter, value)
        parameter.requires_grad_(trained)
        parameter.grad = gradient


@torch.no_grad()
def _write(tensor: torch.Tensor, value: torch.Tensor) -> None:
    if not torch.equal(tensor, value):  # expanded buffers refuse to be written
        tensor.copy_(value)


@contextmanager
def only_ops(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Inside, only the CompressionOps of these names run; the others pass values unchanged."""
    compression = compression_of(model)
    assert compression is not None
    others = {name: op for name, op in compression.ops.items() if name not in names}
    try:
        for name in others:
            compression.ops[name] = nn.Identity()
        yield
    finally:
        for name, op in others.items():
            compression.ops[name] = op
