# SPDX-License-Identifier: Apache-2.0
"""Filter pruning in PyTorch: masks on channels, importance of filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nncf.algorithms.filter_pruning.scheme import ChannelMask, Fill
from nncf.compression.layout import Insert
from nncf.graph.channels import Ids, Producer


def make_op(insert: Insert) -> MaskedChannels:
    """Return the running op of one Insert whose description is a ChannelMask."""
    assert isinstance(insert.op, ChannelMask)
    return MaskedChannels(insert.op, insert.shape)


class MaskedChannels(nn.Module):
    """Hides channels of a tensor that will be removed.

    ``fill`` "zero": they are zero. "mean": they are the mean of the others. "statistics" (and "mean_square"): they get values that leave
    mean and variance (the mean square) over the axis as the other channels alone have them, so
    that a normalisation gives those what it will give when they are alone. The state dict holds
    one mask per axis (``kept_<axis>``, 1 for what is kept).
    """

    def __init__(self, scheme: ChannelMask, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scheme = scheme
        self.shape = tuple(shape)
        for axis in scheme.axes:
            self.register_buffer(f"kept_{axis}", torch.ones(shape[axis]))

    def mask(self, axis: int) -> torch.Tensor:
        return getattr(self, f"kept_{axis}")  # type: ignore[no-any-return]  # registered above

    def hidden(self, axis: int) -> NDArray[np.bool_]:
        """Return True for each channel that is hidden."""
        found: NDArray[np.bool_] = (self.mask(axis) < 0.5).cpu().numpy()
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scheme.fill != "zero":
            (axis,) = self.scheme.axes
            return _filled(x, self.mask(axis), axis, fill=self.scheme.fill)
        for axis in self.scheme.axes:
            shape = [1] * x.dim()
            shape[axis] = -1
            x = x * self.mask(axis).view(shape).to(x.dtype)
        return x

    @torch.no_grad()
    def bake(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight without the channels' values."""
        return self.forward(weight.detach())

    def native(self) -> nn.Module:
        """Return what computes the same until the channels are removed."""
        return self

    def describe(self) -> dict[str, Any]:
        """Return what this mask is, as JSON-able data (for statistics and reports)."""
        kept = {str(axis): int(self.mask(axis).sum()) for axis in self.scheme.axes}
        return {"algorithm": self.scheme.algorithm, "fill": self.scheme.fill, "kept": kept}

    def extra_repr(self) -> str:
        kept = [
            f"{int(self.mask(a).sum())} of {self.shape[a]} (axis {a})" for a in self.scheme.axes
        ]
        return f"keeps {', '.join(kept)}"


def _filled(x: torch.Tensor, mask: torch.Tensor, axis: int, *, fill: Fill) -> torch.Tensor:
    """Return x with the hidden channels at the mean, or at mean ± standard deviation, of the others.

    With k others, mean m and variance v: the n hidden values ``m + √v · z`` with Σz = 0 and
    Σz² = n leave the mean at m and the variance at v. Uncentred, each is the root of the mean
    square. z is ±1 in turn, and for an odd n three values ``√1.5, −√1.5, 0``.
    """
    shape = [1] * x.dim()
    shape[axis] = -1
    kept = mask.view(shape).to(x.dtype)
    share = kept.mean()
    if fill == "mean_square":
        square = (x * x * kept).mean(axis, keepdim=True) / share
        return torch.where(kept > 0, x, square.sqrt())
    mean = (x * kept).mean(axis, keepdim=True) / share
    if fill == "mean":
        return torch.where(kept > 0, x, mean)
    variance = ((x - mean).square() * kept).mean(axis, keepdim=True) / share
    spread = _spread(mask.to(x.dtype)).view(shape)
    # the root has no gradient at zero, where nothing spreads either
    return torch.where(kept > 0, x, mean + variance.clamp(min=1e-30).sqrt() * spread)


def _spread(mask: torch.Tensor) -> torch.Tensor:
    """Return z of ``_filled``, one for each channel (whatever for those that are kept)."""
    hidden = mask < 0.5
    place = hidden.cumsum(0)  # 1, 2, … over the hidden ones
    count = place[-1]
    signs = 1.0 - 2.0 * (place % 2).to(mask.dtype)
    root = torch.full_like(mask, 1.5).sqrt()
    first_three = root * ((place == 1).to(mask.dtype) - (place == 2).to(mask.dtype))
    return torch.where((count % 2 == 1) & (place <= 3), first_three, signs)


# --- importance ----------------------------------------------------------------------------------


@torch.no_grad()
def filter_importance(
    weight: torch.Tensor, producer: Producer, importance: str, *, normalized: bool
) -> NDArray[np.float64]:
    """Return the importance of each filter (index along the producer's axis), float64.

    ``L1``: Σ|w|, ``L2``: √Σw², ``geometric_median``: the sum of distances to all other filters
    (Y. He et al. 2019, eq. 4). ``normalized`` divides the weight by its norm first.
    """
    filters = weight.detach().double().movedim(producer.axis, 0).flatten(1)
    if normalized:
        filters = filters / filters.norm().clamp(min=1e-12)
    if importance == "L1":
        found = filters.abs().sum(1)
    elif importance == "L2":
        found = filters.square().sum(1).sqrt()
    else:
        found = torch.cdist(filters, filters).sum(1)
    result: NDArray[np.float64] = found.cpu().numpy()
    return result


# --- training for the learned ranking ------------------------------------------------------------


def make_optimizer(model: nn.Module, factory: Callable[[Any], Any] | None) -> Any:
    """Return the optimizer of what is trainable: the user's, or stochastic gradient descent."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if factory is not None:
        return factory(parameters)
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)


# --- masks ---------------------------------------------------------------------------------------


@torch.no_grad()
def set_masks(ops: Mapping[str, Any], axes: Mapping[str, Mapping[int, Ids]], kept: Any) -> None:
    """Hide every channel whose unit is not ``kept`` (bool by unit) from all masks."""
    for name, by_axis in axes.items():
        for axis, units in by_axis.items():
            mask = ops[name].mask(axis)
            mask.copy_(torch.from_numpy(kept[units] | (units < 0)).to(mask))
