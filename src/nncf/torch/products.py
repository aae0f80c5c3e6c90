# SPDX-License-Identifier: Apache-2.0
"""Products of tensors by index (``einsum`` and its like), written out as visible matmuls.

Which calls are made depends on the indices alone, never on sizes: an address means the same
operation for every batch.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nncf.torch.hooks import CallingMode

Indexed = tuple[torch.Tensor, list[str]]
"""A tensor, and the index of each of its axes."""


def einsum(mode: CallingMode, equation: str, *operands: Any) -> torch.Tensor:
    """``torch.einsum``, operands joined from left to right."""
    tensors = operands[0] if isinstance(operands[0], (list, tuple)) else operands
    terms, output = parse(equation, [tensor.dim() for tensor in tensors])
    joined: Indexed = (tensors[0], terms[0])
    for place, other in enumerate(zip(tensors, terms, strict=True)):
        if place:
            joined = _join(mode, joined, other, {*output}.union(*terms[place + 1 :]))
    tensor, indices = joined
    return mode.call(torch.permute, tensor, tuple(indices.index(index) for index in output))  # type: ignore[no-any-return]  # call returns Any


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Return the indices of each operand and of the result, an ellipsis written out."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    texts = inputs.split(",")
    spans = [rank - len(text) + 3 for text, rank in zip(texts, ranks, strict=True) if "..." in text]
    free = [letter for letter in string.ascii_letters if letter not in equation]
    ellipsis = free[: max(spans, default=0)]

    def written_out(text: str, rank: int) -> list[str]:
        before, dots, after = text.partition("...")
        span = rank - len(before) - len(after) if dots else 0
        return [*before, *ellipsis[len(ellipsis) - span :], *after]

    terms = [written_out(text, rank) for text, rank in zip(texts, ranks, strict=True)]
    if arrow:
        return terms, written_out(output, len(output) - 3 + len(ellipsis))
    every = "".join(texts).replace(".", "")
    return terms, [*ellipsis, *sorted(letter for letter in {*every} if every.count(letter) == 1)]


def _join(mode: CallingMode, left: Indexed, right: Indexed, wanted: set[str]) -> Indexed:
    """Multiply two tensors and sum over the indices that nobody wants any more."""
    left, right = _sum_own(mode, left, right[1], wanted), _sum_own(mode, right, left[1], wanted)
    shared = [index for index in left[1] if index in right[1]]
    batch = [index for index in shared if index in wanted]
    summed = [index for index in shared if index not in wanted]
    rows = [index for index in left[1] if index not in shared]
    columns = [index for index in right[1] if index not in shared]
    sizes: dict[str, int] = {}
    for tensor, indices in (left, right):
        for index, size in zip(indices, tensor.shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    first = _arranged(mode, left, [batch, rows, summed], sizes)
    second = _arranged(mode, right, [batch, summed, columns], sizes)
    # Without a sum the matrices are a column and a row: a plain multiplication.
    product = mode.call(torch.matmul if summed else torch.mul, first, second)
    result = [*batch, *rows, *columns]
    return mode.call(torch.reshape, product, [sizes[index] for index in result]), result


def _sum_own(
    mode: CallingMode, indexed: Indexed, others: Sequence[str], wanted: set[str]
) -> Indexed:
    tensor, indices = indexed
    axes = [a for a, index in enumerate(indices) if index not in others and index not in wanted]
    if not axes:
        return indexed
    rest = [index for axis, index in enumerate(indices) if axis not in axes]
    return mode.call(torch.sum, tensor, axes), rest


def _arranged(
    mode: CallingMode, indexed: Indexed, groups: Sequence[Sequence[str]], sizes: dict[str, int]
) -> torch.Tensor:
    """Return the tensor with its axes in groups, each one axis; none for an empty first group."""
    tensor, indices = indexed
    order = [index for group in groups for index in group]
    tensor = mode.call(torch.permute, tensor, tuple(indices.index(index) for index in order))
    tensor = mode.call(torch.Tensor.expand, tensor, [sizes[index] for index in order])
    shape = [_product(sizes[index] for index in group) for group in groups]
    return mode.call(torch.reshape, tensor, shape if groups[0] else shape[1:])  # type: ignore[no-any-return]  # call returns Any


def _product(sizes: Any) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def tensordot(
    mode: CallingMode,
    a: torch.Tensor,
    b: torch.Tensor,
    dims: Any = 2,
    out: None = None,  # noqa: ARG001 (calls that give it are not rewritten)
) -> torch.Tensor:
    """``torch.tensordot``: a sum over the last axes of one and the first of the other, or pairs."""
    if isinstance(dims, int):
        dims = (range(a.dim() - dims, a.dim()), range(dims))
    letters = iter(string.ascii_letters)
    left = [next(letters) for _ in range(a.dim())]
    right = [next(letters) for _ in range(b.dim())]
    pairs = {right[j]: left[i] for i, j in zip(*dims, strict=True)}
    named = [pairs.get(letter, letter) for letter in right]
    kept = [letter for letter in left if letter not in pairs.values()]
    output = kept + [letter for letter in right if letter not in pairs]
    return einsum(mode, f"{''.join(left)},{''.join(named)}->{''.join(output)}", a, b)


def bilinear(
    mode: CallingMode,
    input1: torch.Tensor,
    input2: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``F.bilinear``: ``y_o = Σ_ij x1_i W_oij x2_j + b_o``."""
    product = einsum(mode, "...i,oij,...j->...o", input1, weight, input2)
    return product if bias is None else mode.call(torch.add, product, bias)  # type: ignore[no-any-return]  # call returns Any


def einsum_reason(equation: Any) -> str | None:
    """Return why a call of ``einsum`` has no written-out form."""
    if not isinstance(equation, str):
        return "einsum with indices in lists is one opaque call; write them as an equation"
    terms = equation.partition("->")[0].replace(" ", "").replace(".", "").split(",")
    if any(len({*term}) < len(term) for term in terms):
        return "einsum with an index twice in one operand is one opaque call"
    return None


REWRITES: dict[str, Callable[..., Any]] = {
    "einsum": einsum,
    "tensordot": tensordot,
    "bilinear": bilinear,
}
"""Rewrites by the name of the function that they stand for."""
