# SPDX-License-Identifier: Apache-2.0
"""Places: how a packed tensor says which of its elements are stored, in bits or in gaps.

And small numbers, so many bits for each, for what is stored there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.packed_tensor import Part, Words

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


def places(kept: NDArray[np.bool_], role: str) -> dict[str, Part]:
    """Return where something is kept: as a mask of bits or as gaps of bytes."""
    return {role: Part(to_bits(kept) if role == "mask" else to_gaps(kept), "U8")}


def kept_at(parts: Mapping[str, Part], count: int) -> NDArray[np.bool_]:
    """Return which of ``count`` elements are kept, from the mask or the gaps among the parts."""
    if "mask" in parts:
        return from_bits(parts["mask"].words, count)
    return from_gaps(parts["gaps"].words, count)


def spread(values: Words, kept: NDArray[np.bool_]) -> Words:
    """Return the values at their places and zeros elsewhere. Raises ValueError if they differ."""
    expected = int(np.count_nonzero(kept))
    if expected != values.size:
        raise ValueError(f"places of {expected} values are stored, and {values.size} values")
    words = np.zeros(kept.size, values.dtype)
    words[kept] = values
    return words


_BLOCK = 2**20  # numbers at a time: their bits take a byte each in between


def to_small(numbers: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return numbers below 2^bits in so many bits each, one after the other, low bits first."""
    if bits == 8:
        return np.ascontiguousarray(numbers, np.uint8)
    blocks = [
        np.packbits(
            np.unpackbits(
                np.ascontiguousarray(numbers[start : start + _BLOCK], np.uint8)[:, None],
                axis=1,
                count=bits,
                bitorder="little",
            ),
            bitorder="little",
        )
        for start in range(0, max(numbers.size, 1), _BLOCK)
    ]
    return np.concatenate(blocks)


def from_small(stored: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """Return ``count`` numbers of so many bits. Raises ValueError unless just these are stored."""
    if stored.dtype.itemsize != 1 or stored.size != -(-count * bits // 8):
        raise ValueError(f"{stored.nbytes} bytes are stored for {count} numbers of {bits} bits")
    if bits == 8:
        return stored.view(np.uint8)
    found = np.empty(count, np.uint8)
    for start in range(0, count, _BLOCK):
        part = found[start : start + _BLOCK]
        begin, end = start * bits // 8, -(-(start + part.size) * bits // 8)
        flags = np.unpackbits(
            stored[begin:end].view(np.uint8), count=part.size * bits, bitorder="little"
        )
        part[:] = np.packbits(flags.reshape(-1, bits), axis=1, bitorder="little")[:, 0]
    return found
