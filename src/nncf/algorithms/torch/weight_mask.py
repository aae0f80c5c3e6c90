# SPDX-License-Identifier: Apache-2.0
"""A mask on a weight: what it drops is zero in the forward and gets no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

KEPT = 127
"""What stands in the buffer for a weight that is kept; 0 stands for one that is dropped.

Small whole numbers, not bools: averages of copies (``torch.optim.swa_utils``) add buffers up and
round them, and so come out as a vote.
"""


class WeightMask(nn.Module):
    """Sets the dropped elements of a weight to zero; the buffer ``mask`` has a byte for each.

    The weight itself keeps its values, so that one that comes back goes on where it was.
    """

    spent_once_baked = True

    mask: torch.Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full(shape, KEPT, dtype=torch.int8))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(self.kept(), weight, 0.0)

    def kept(self) -> torch.Tensor:
        """Return what stays, as bools."""
        return self.mask > KEPT // 2

    def keep(self, kept: torch.Tensor) -> None:
        """Take a new mask, given as bools of the weight's shape."""
        self.mask.copy_(kept.to(torch.int8) * KEPT)

    def bake(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with its zeros."""
        return torch.where(self.kept(), weight.detach(), 0.0)

    def native(self) -> nn.Module:
        """Return what masks a weight that cannot be baked, since others read it unmasked."""
        return FixedMask(self.kept())

    def zeros(self, weight: torch.Tensor) -> torch.Tensor:
        """Return how many elements of the masked weight are zero."""
        return weight.numel() - torch.count_nonzero(self.bake(weight))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        # Earlier releases, and other programs, save ones and zeros.
        saved = state_dict.get(f"{prefix}mask")
        if isinstance(saved, torch.Tensor) and saved.dtype != torch.int8:
            state_dict[f"{prefix}mask"] = (saved > 0.5).to(torch.int8) * KEPT
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def describe(self) -> Mapping[str, Any]:
        """Return what this mask is, as JSON-able data (for reports)."""
        return {
            "kind": "mask",
            "shape": list(self.mask.shape),
            "dropped": int(self.mask.numel() - torch.count_nonzero(self.kept())),
        }

    def extra_repr(self) -> str:
        shape = " × ".join(map(str, self.mask.shape))
        if self.mask.device.type == "meta":
            return shape
        return f"{shape}, {self.describe()['dropped']} of {self.mask.numel()} dropped"


class FixedMask(nn.Module):
    """The same in a stripped model."""

    mask: torch.Tensor

    def __init__(self, kept: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", kept)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, weight, 0.0)
