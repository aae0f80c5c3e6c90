# SPDX-License-Identifier: Apache-2.0
"""Fake quantization in plain PyTorch operations: the truth that every faster form must match.

A *grid* is a float32 tensor whose first dimension has the rows STEP…LOW_GAIN and whose others
broadcast against x. Codes are counted from the code of zero, so zero is always on the grid.
"""

from __future__ import annotations

import torch

STEP, INVERSE, LOWEST, HIGHEST, LOW, HIGH, ERROR_GAIN, ABOVE_GAIN, BELOW_GAIN, LOW_GAIN = range(10)
PIECE = 1 << 17  # elements, half a mebibyte


def quantize_reference(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Return x on the grid: ``clamp(round(x · 1/step), lowest, highest) · step``.

    Order and precision (float32) are those of ``torch.fake_quantize_per_tensor_affine``:
    multiplication by the rounded 1/step, ties to even, and no negative zero.
    """
    codes = torch.round(x * grid[INVERSE])
    codes = torch.minimum(torch.maximum(codes, grid[LOWEST]), grid[HIGHEST])
    return (codes + 0.0) * grid[STEP]


def gradient_reference(
    gradient: torch.Tensor, x: torch.Tensor, grid: torch.Tensor, dims: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of x, and three sums over ``dims``, [3, …] with dims kept.

    The sums are: gradient · (code − x/step) where x lies within the range, the gradient where
    x lies above it, the gradient where x lies below it.
    """
    above, below = x > grid[HIGH], x < grid[LOW]
    inside = torch.where(above | below, 0.0, gradient)
    scaled = x * grid[INVERSE]
    codes = torch.minimum(torch.maximum(torch.round(scaled), grid[LOWEST]), grid[HIGHEST])
    sums = [
        ((codes - scaled) * inside).sum(dims, keepdim=True),
        torch.where(above, gradient, 0.0).sum(dims, keepdim=True),
        torch.where(below, gradient, 0.0).sum(dims, keepdim=True),
    ]
    return inside, torch.stack(sums)


def quantize_eager(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """``quantize_reference`` without its temporary tensors; not for tracers."""
    codes = x * grid[INVERSE]
    codes.round_()
    # clamp_ with bounds in tensors is ten times slower than these two
    torch.maximum(codes, grid[LOWEST], out=codes)
    torch.minimum(codes, grid[HIGHEST], out=codes)
    return codes.add_(0.0).mul_(grid[STEP])


def gradient_eager(
    gradient: torch.Tensor, x: torch.Tensor, grid: torch.Tensor, dims: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``gradient_reference`` with fewer temporary tensors; not for tracers."""
    scaled = x * grid[INVERSE]
    error = torch.round(scaled)
    torch.maximum(error, grid[LOWEST], out=error)
    torch.minimum(error, grid[HIGHEST], out=error)
    error.sub_(scaled)
    above, below, zero = x > grid[HIGH], x < grid[LOW], x.new_zeros(())
    # where, not multiplication: an infinite gradient must not make NaN of the others' zeros
    torch.where(above, gradient, zero, out=scaled)
    sum_above = scaled.sum(dims, keepdim=True)
    torch.where(below, gradient, zero, out=scaled)
    sum_below = scaled.sum(dims, keepdim=True)
    inside = torch.where(above.logical_or_(below), zero, gradient)
    sum_error = error.mul_(inside).sum(dims, keepdim=True)
    return inside, torch.stack([sum_error, sum_above, sum_below])


def gradient_in_pieces(
    gradient: torch.Tensor, x: torch.Tensor, grid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``gradient_eager`` of a tensor with one grid, in pieces whose temporaries stay in cache.

    On the processor this is three times faster for large tensors: most of the time goes into
    fetching fresh memory for temporaries otherwise.
    """
    x = dense(x)
    gradient = dense(gradient, like=x)
    inside = torch.empty_like(x)
    flat = [tensor.as_strided((x.numel(),), (1,)) for tensor in (gradient, x, inside)]
    sums = grid.new_zeros(3, 1)
    for part, value, out in zip(*(tensor.split(PIECE) for tensor in flat), strict=True):
        found, partial = gradient_eager(part, value, grid, (0,))
        out.copy_(found)
        sums += partial
    return inside, sums


def broadcast(grid: torch.Tensor, rank: int, axis: int | None) -> torch.Tensor:
    """Return a grid [rows, channels] viewed so that its rows broadcast against x."""
    if axis is None:
        return grid.reshape(grid.shape[0])
    shape = [1] * rank
    shape[axis] = grid.shape[1]
    return grid.view(grid.shape[0], *shape)


def summed_dims(rank: int, axis: int | None) -> tuple[int, ...]:
    """Return the dimensions over which a parameter's gradient is summed."""
    return tuple(dim for dim in range(rank) if dim != axis)


def memory_shape(x: torch.Tensor, axis: int | None) -> tuple[int, int, int]:
    """Return how a dense x lies in memory: its elements outside, along and inside ``axis``."""
    if axis is None or x.shape[axis] == 1:  # the stride of an axis of length 1 means nothing
        return 1, 1, x.numel()
    channels, inner = x.shape[axis], x.stride(axis)
    return x.numel() // (channels * inner), channels, inner


def dense(x: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return x without holes or repetitions in its memory, laid out as ``like`` when given."""
    if like is not None:
        return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)
    if x.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(x):
        return x
    return torch.empty_like(x).copy_(x)
