# SPDX-License-Identifier: Apache-2.0
"""The range with the least rounding error: with few bits, cutting outliers off pays.

A smaller range makes the steps of a grid smaller and cuts more values off; somewhere between
nothing and the whole range the mean squared error is least (Choukroun et al., "Low-bit
Quantization of Neural Networks for Efficient Inference", arXiv:1902.06822; as the start of
learned steps: Bhalgat et al., "LSQ+", arXiv:2004.09576). It can have several minima, so shares of
the whole range are tried one by one, first four per octave, then sixteen around the best of each
channel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nncf.compression.calibration import RoundingGrid

VALUES = 2**20
"""How many values of a tensor are looked at; more do not change the result."""

_OCTAVES, _COARSE, _FINE = 10, 4, 16
_ROUNDS = 2  # of both ends in turn
_SMALLEST = 1e-30  # of steps: rows of zeros have no error at any

Codes = tuple[Tensor, Tensor, Tensor]  # step, lowest and highest code, one per row


def least_error(
    rows: Tensor, grid: RoundingGrid, lowest: Tensor, highest: Tensor
) -> tuple[Tensor, Tensor]:
    """Return both ends of the range for every row of a matrix [channels, n].

    ``lowest`` and ``highest`` are the extremes of the rows. Symmetric grids are signed for all
    rows if any value is negative.
    """
    rows = rows.float()
    low, high = lowest.to(rows).clamp(max=0), highest.to(rows).clamp(min=0)
    negative = bool((low < 0).any())
    levels = grid.signed if negative or grid.unsigned is None else grid.unsigned
    if levels is not None and levels[0] < 0 and not grid.zero:
        high = rows.abs().mean(1)  # Rastegari et al., "XNOR-Net", arXiv:1603.05279, equation 6
        low = -high
    elif levels is None:
        assert grid.unsigned is not None  # one of the two is there
        low, high = _both_ends(rows, low, high, grid.unsigned[1])
    else:
        high = _magnitude(rows, torch.maximum(high, -low) if levels[0] < 0 else high, levels)
        low = -high if levels[0] < 0 else torch.zeros_like(high)
    return low.cpu(), high.cpu()


def _magnitude(rows: Tensor, reach: Tensor, levels: tuple[int, int]) -> Tensor:
    """Return the value of the highest code of a grid that contains zero, up to ``reach``."""
    ends = [torch.full_like(reach, float(level)) for level in levels]

    def codes(share: Tensor) -> Codes:
        return reach * share / levels[1], ends[0], ends[1]

    return reach * _best_share(rows, codes)


def _both_ends(rows: Tensor, low: Tensor, high: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """Return the ends of a grid with ``intervals`` steps, moved one after the other."""

    def codes(low: Tensor, high: Tensor) -> Codes:
        step = ((high - low) / intervals).clamp(min=_SMALLEST)
        zero = torch.round(-low / step)
        return step, -zero, intervals - zero

    def both(share: Tensor) -> Codes:
        return codes(low * share, high * share)

    best = _best_share(rows, both)
    start, end = low * best, high * best
    for _ in range(_ROUNDS):
        upper = _best_share(rows, lambda share, low=start: codes(low, high * share))
        end = high * upper
        lower = _best_share(rows, lambda share, high=end: codes(low * share, high))
        start = low * lower
    return start, end


def _best_share(rows: Tensor, codes: Callable[[Tensor], Codes]) -> Tensor:
    """Return for every row the share in (0, 1] whose grid has the least squared error."""
    coarse = [2.0 ** (-place / _COARSE) for place in range(_OCTAVES * _COARSE + 1)]
    best = _best(rows, codes, [rows.new_full((len(rows),), share) for share in coarse])
    around = range(1 - _FINE // _COARSE, _FINE // _COARSE)
    return _best(rows, codes, [(best * 2.0 ** (p / _FINE)).clamp(max=1) for p in around])


def _best(rows: Tensor, codes: Callable[[Tensor], Codes], shares: list[Tensor]) -> Tensor:
    errors = torch.stack([_squared_error(rows, codes(share)) for share in shares])
    return torch.stack(shares).gather(0, errors.argmin(0, keepdim=True))[0]


def _squared_error(rows: Tensor, codes: Codes) -> Tensor:
    step, low, high = (part[:, None] for part in codes)
    step = step.clamp(min=_SMALLEST)
    rounded = (rows / step).round_().clamp_(low, high).mul_(step)
    return rounded.sub_(rows).square_().sum(1)
