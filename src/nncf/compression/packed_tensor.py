# SPDX-License-Identifier: Apache-2.0
"""A tensor as it is packed: its words, the grids it may lie on, the parts it becomes.

*Words* are the bits of a tensor's elements as unsigned integers, so one code serves all dtypes,
and a negative zero or a NaN is a word like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[Any]

DTYPES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "C64": 8,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
}
"""Bytes of one element, by the names that safetensors gives to dtypes."""


@dataclass(frozen=True)
class CodeGrid:
    """A grid on which a tensor may lie: code · ``step``, 2^bits codes from ``lowest`` on.

    Both are flat, with one element, or one for each channel along ``axis``.
    """

    step: NDArray[np.float32]
    lowest: NDArray[np.int64]
    axis: int | None = None
    bits: int = 8

    def along(self, values: NDArray[Any], rank: int) -> NDArray[Any]:
        """Return ``step`` or ``lowest`` shaped to broadcast over a tensor of that rank."""
        if self.axis is None:
            return values.reshape(())
        return values.reshape([-1 if axis == self.axis else 1 for axis in range(rank)])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether there is one number for all, or one for each channel of that shape."""
        if self.axis is None:
            count = 1
        elif 0 <= self.axis < len(shape):
            count = shape[self.axis]
        else:
            return False
        return self.step.shape == self.lowest.shape == (count,)


@dataclass(frozen=True)
class Plain:
    """A tensor before it is packed: its words, flat; ``grids`` on which its values may lie."""

    words: Words
    dtype: str
    shape: tuple[int, ...]
    grids: tuple[CodeGrid, ...] = ()


@dataclass(frozen=True)
class Part:
    """One stored array of a packed tensor, flat; ``dtype`` says how readers are to see it."""

    words: Words
    dtype: str


@dataclass(frozen=True)
class Packed:
    """A tensor in some form: ``parts`` by their role, ``facts`` are plain JSON."""

    form: str
    parts: Mapping[str, Part]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(part.words.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Form:
    """``pack`` returns None where the form does not apply; ``unpack`` returns the words.

    ``unpack`` raises ValueError, with the reason, for parts that do not belong together.
    """

    pack: Callable[[Plain], Packed | None]
    unpack: Callable[[Packed, str, tuple[int, ...]], Words]
    roles: frozenset[str]


def element_count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def word_type(dtype: str) -> np.dtype[Any]:
    """Return the unsigned integer whose bits hold one element."""
    return np.dtype(f"<u{DTYPES[dtype]}")
