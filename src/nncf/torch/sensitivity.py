# SPDX-License-Identifier: Apache-2.0
"""What single changes do to the outputs of a model, and quantizers as they were before one."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nncf.compression.layout import Layout
from nncf.errors import DataError
from nncf.torch.calibration import CalibrationBatch, calibration_batches, evaluating, run
from nncf.torch.distributed import together
from nncf.torch.intercept import compression_of
from nncf.torch.structure import tensors_in

Key = TypeVar("Key", bound=Hashable)

MOST = 1e3
"""The greatest relative change that counts, NaN and infinity too."""


@dataclass(frozen=True)
class Memory:
    """A quantizer at one time: its scheme, its tensors by name, its flags."""

    scheme: Any
    tensors: Mapping[str, Tensor]
    initialized: bool
    enabled: bool


def remember(quantizer: Any) -> Memory:
    """Return what ``recall`` brings back."""
    tensors = {**dict(quantizer.named_parameters()), **dict(quantizer.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return Memory(quantizer.scheme, values, quantizer.initialized, quantizer.enabled)


@torch.no_grad()
def recall(quantizer: Any, memory: Memory) -> None:
    """Bring a quantizer back to what it was; its parameters stay the same objects."""
    for name, tensor in (*quantizer.named_parameters(), *quantizer.named_buffers()):
        tensor.copy_(memory.tensors[name])
    quantizer.scheme = memory.scheme
    quantizer.initialized, quantizer.enabled = memory.initialized, memory.enabled


def describe_anew(model: nn.Module, layout: Layout) -> None:
    """Let the model know of the new descriptions of ops that run in it."""
    compression = compression_of(model)
    assert compression is not None
    anew = {insert.name: insert for insert in layout}
    former = compression.layout
    compression.layout = Layout([anew.get(i.name, i) for i in former], former.skipped)


def output_changes(
    model: nn.Module,
    changes: Mapping[Key, Callable[[], AbstractContextManager[None]]],
    loader: Iterable[Any],
    *,
    samples: int,
    device: Any = None,
) -> dict[Key, float]:
    """Return ``Σ |Δy|² / Σ |y|²`` over the outputs y of a model, for each change made alone.

    A change is in force inside of its context. Outputs of integers are left out. The model runs in
    evaluation mode and is as before afterwards. Raises DataError for outputs that are not finite
    without any change, and when the data does not fit.
    """
    with evaluating(model, loader=loader, device=device), together():
        batches = list(calibration_batches(loader, samples, model, device=device))
        usual = [_outputs(model, batch) for batch in batches]
        size = sum(_squares(tensor) for outputs in usual for tensor in outputs)
        if not math.isfinite(size):
            raise DataError(
                "The outputs of the model hold NaN or infinity, so it cannot be told which of its "
                "weights need their bits most. Expected finite outputs: check the registered data, "
                "and the model before compression."
            )
        found = {}
        for key, change in changes.items():
            with change():
                moved = sum(
                    _squares(after - before)
                    for batch, outputs in zip(batches, usual, strict=True)
                    for after, before in zip(_outputs(model, batch), outputs, strict=True)
                )
            relative = moved / size if size else moved
            found[key] = min(relative, MOST) if math.isfinite(relative) else MOST
        return found


def _outputs(model: nn.Module, batch: CalibrationBatch) -> list[Tensor]:
    return [t for t in tensors_in(run(model, batch)) if t.is_floating_point()]


def _squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
