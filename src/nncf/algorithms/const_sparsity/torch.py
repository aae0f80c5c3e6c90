# SPDX-License-Identifier: Apache-2.0
"""The mask of const sparsity as a PyTorch module."""

from __future__ import annotations

import torch

from nncf.algorithms.torch.weight_mask import WeightMask
from nncf.compression.layout import Insert


def make_op(insert: Insert) -> ConstWeightMask:
    """Return the running op of one Insert."""
    return ConstWeightMask(insert.shape)


class ConstWeightMask(WeightMask):
    """Keeps what is zero in the weight that it was shown last."""

    @torch.no_grad()
    def weight_loaded(self, weight: torch.Tensor) -> None:
        """Take the zeros of a weight; ``load_state`` calls it when a file has weights but no mask."""
        self.keep(weight != 0)
