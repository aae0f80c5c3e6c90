# SPDX-License-Identifier: Apache-2.0
"""Places: how a packed tensor says which of its elements are stored, in bits or in gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SKIP = 255  # as a gap: that many elements are left out, and none is stored after them


def to_bits(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return one bit for each flag, the first in the lowest bit of the first byte."""
    return np.packbits(flags, bitorder="little")


def from_bits(bits: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return the first ``count`` flags. Raises ValueError unless just these are stored."""
    if bits.size != -(-count // 8):
        raise ValueError(f"a mask of {bits.size} bytes is stored, {count} bits were expected")
    if count % 8 and int(bits[-1]) >> (count % 8):
        raise ValueError("bits are set beyond the end of a mask")
    return np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)


def to_gaps(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a byte for each flag that is set: how many before it, since the last one, are not.

    255 stands for that many and none set after them, so it may come before a byte, repeatedly.
    Fewer bytes than a mask's where less than one flag of eight is set.
    """
    gaps = np.diff(np.flatnonzero(flags), prepend=-1) - 1
    skips = gaps // _SKIP
    found = np.full(gaps.size + int(skips.sum()), _SKIP, np.uint8)
    found[np.cumsum(skips + 1) - 1] = gaps % _SKIP
    return found


def from_gaps(gaps: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return ``count`` flags. Raises ValueError when the gaps lead beyond the last."""
    last = np.flatnonzero(gaps != _SKIP)
    places = np.cumsum(gaps, dtype=np.int64)[last] + np.arange(last.size)
    skips_at_the_end = bool(gaps.size) and int(gaps[-1]) == _SKIP
    if skips_at_the_end or (places.size and int(places[-1]) >= count):
        raise ValueError(f"gaps lead beyond the end of {count} elements")
    flags = np.zeros(count, np.bool_)
    flags[places] = True
    return flags
