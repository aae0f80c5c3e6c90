# SPDX-License-Identifier: Apache-2.0
"""A quantizer that no longer learns, made of PyTorch's own operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class NativeQuantizer(nn.Module):
    """A quantizer made of PyTorch's own operators, ready for export; its range is fixed.

    The operators know the grids 0…255 and −128…127 only: x is clamped first for smaller ones.
    ``zero`` False: only the ends of the grid are meant, and x goes to one of them by its sign.
    """

    scale: Any  # per channel tensors, per tensor plain numbers
    zero_point: Any
    minimum: Any
    maximum: Any

    def __init__(
        self,
        step: torch.Tensor,
        zero_point: torch.Tensor,
        *,
        levels: tuple[int, int],
        axis: int | None,
        zero: bool = True,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.axis = axis
        self.zero = zero
        self.code_range = (-128, 127) if levels[0] < 0 else (0, 255)
        numbers = {
            "scale": step,
            "zero_point": zero_point,
            "minimum": (levels[0] - zero_point) * step,
            "maximum": (levels[1] - zero_point) * step,
        }
        for name, values in numbers.items():
            if axis is None:  # constants: an exporter writes nothing that computes them
                setattr(self, name, values.item())
            else:
                self.register_buffer(name, values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x on the grid, computed in float32, in the dtype of x."""
        if x.dtype != torch.float32:
            return self.forward(x.float()).to(x.dtype)
        if self.levels != self.code_range:
            x = self._clamp(x)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(
                x, self.scale, self.zero_point, *self.code_range
            )
        return torch.fake_quantize_per_channel_affine(
            x, self.scale, self.zero_point, self.axis, *self.code_range
        )

    def _clamp(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.minimum, self.maximum
        if self.axis is not None:
            shape = [1] * x.dim()
            shape[self.axis] = -1
            low, high = low.view(shape), high.view(shape)
        return torch.clamp(x, low, high) if self.zero else torch.where(x > 0, high, low)

    def shorten(self, masks: Mapping[int, torch.Tensor]) -> None:
        """Follow a tensor that loses indices: by axis, ``masks`` are True for those that stay."""
        if self.axis in masks:
            for name, values in list(self.named_buffers()):
                setattr(self, name, values[masks[self.axis].to(values.device)])

    def code_grid(self) -> tuple[torch.Tensor, torch.Tensor, int | None]:
        """Return step, lowest code counted from that of zero (both flat), and the channels' axis."""
        step, zero = (torch.as_tensor(v).reshape(-1) for v in (self.scale, self.zero_point))
        return step, self.code_range[0] - zero, self.axis

    def extra_repr(self) -> str:
        grain = "per tensor" if self.axis is None else f"per channel (axis {self.axis})"
        return f"codes {self.levels[0]}…{self.levels[1]} {grain}"
