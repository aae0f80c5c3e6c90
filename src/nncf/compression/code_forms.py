# SPDX-License-Identifier: Apache-2.0
"""Forms of tensors with few different values: codes on a grid, and numbers of a palette."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.packed_tensor import (
    CodeGrid,
    Form,
    Packed,
    Part,
    Plain,
    Words,
    element_count,
    word_type,
)
from nncf.compression.places import from_small, kept_at, places, spread, to_small

_MOST = 16  # values of a palette
_SAMPLE = 1024  # elements that tell quickly that a tensor has more

# --- codes on a grid -----------------------------------------------------------------------


def pack_codes(plain: Plain) -> Packed | None:
    """As few bits for each element as the codes that occur need, and the grid's steps.

    Stored are the codes modulo 2^bits, so that zero stays zero.
    """
    codes, grid = _smallest(plain)
    return None if codes is None else _with_grid("codes", codes, grid)


def _smallest(plain: Plain) -> tuple[NDArray[np.int64] | None, CodeGrid]:
    """Return the codes, flat, and the grid from the lowest that occurs; None without a grid."""
    empty = CodeGrid(np.zeros(0, np.float32), np.zeros(0, np.int64))
    if plain.dtype != "F32" or not plain.words.size:
        return None, empty
    for grid in plain.grids:
        codes = _codes(plain, grid)
        if codes is not None:
            best = min(_from_the_lowest(codes, grid), key=lambda g: _grid_bytes(codes, g))
            return codes.reshape(-1), best
    return None, empty


def _codes(plain: Plain, grid: CodeGrid) -> NDArray[np.int64] | None:
    """Return the codes, shaped; None when code · step misses a bit of any element."""
    values = plain.words.view(np.float32).reshape(plain.shape)
    if not (grid.fits(plain.shape) and np.isfinite(grid.step).all() and (grid.step > 0).all()):
        return None
    low = grid.along(grid.lowest, len(plain.shape))
    step = grid.along(grid.step, len(plain.shape)).astype(np.float64)
    found = np.rint(values / step)
    if not ((found >= low) & (found <= low + 255)).all():  # NaN is not, either
        return None
    codes = found.astype(np.int64)
    return codes if np.array_equal(_values(codes, grid), plain.words) else None


def _values(codes: NDArray[np.int64], grid: CodeGrid) -> Words:
    """Return the words of the values that shaped codes stand for."""
    values = codes.astype(np.float32) * grid.along(grid.step, codes.ndim)
    return np.ascontiguousarray(values).reshape(-1).view(word_type("F32"))


def _from_the_lowest(codes: NDArray[np.int64], grid: CodeGrid) -> Iterator[CodeGrid]:
    """Yield the grid with fewer bits: from the lowest code of all, and from that of each channel."""
    for lowest in (np.full(grid.lowest.shape, codes.min()), _channel(codes, grid.axis, np.min)):
        highest = _channel(codes, grid.axis, np.max)
        bits = max(int((highest - lowest).max()).bit_length(), 1)
        yield grid if bits >= 8 else CodeGrid(grid.step, lowest, grid.axis, bits)


def _channel(codes: NDArray[np.int64], axis: int | None, reduce: Any) -> NDArray[np.int64]:
    others = tuple(i for i in range(codes.ndim) if i != axis)
    return np.asarray(reduce(codes, axis=others), np.int64).reshape(-1)


def _grid_bytes(codes: NDArray[np.int64], grid: CodeGrid) -> int:
    same = bool((grid.lowest == grid.lowest[0]).all())
    return -(-codes.size * grid.bits // 8) + (0 if same else 2 * grid.lowest.size)


def _with_grid(form: str, codes: NDArray[np.int64], grid: CodeGrid) -> Packed:
    """Return codes, flat, and the grid that gives them their values."""
    lowest = int(grid.lowest[0])
    same = bool((grid.lowest == lowest).all())
    stored = to_small((codes & (2**grid.bits - 1)).astype(np.uint8), grid.bits)
    signed = same and lowest == -128 and grid.bits == 8
    found = {"codes": Part(stored, "I8" if signed else "U8")}
    found["step"] = Part(grid.step.view(word_type("F32")), "F32")
    facts: dict[str, Any] = {} if grid.axis is None else {"axis": grid.axis}
    if grid.bits < 8:
        facts["bits"] = grid.bits
    if same:
        facts["lowest"] = lowest
    else:
        found["lowest"] = Part(grid.lowest.astype("<i2").view("<u2"), "I16")
    return Packed(form, found, facts)


def unpack_codes(packed: Packed, dtype: str, shape: tuple[int, ...]) -> Words:
    grid = _grid_of(packed, dtype, shape)
    codes = from_small(packed.parts["codes"].words, grid.bits, element_count(shape))
    return _from_stored(codes, grid, shape)


def _from_stored(codes: Words, grid: CodeGrid, shape: tuple[int, ...]) -> Words:
    low = grid.along(grid.lowest, len(shape))
    mask = 2**grid.bits - 1
    return _values(((codes.reshape(shape).astype(np.int64) - low) & mask) + low, grid)


def _grid_of(packed: Packed, dtype: str, shape: tuple[int, ...]) -> CodeGrid:
    step, axis = packed.parts["step"].words, packed.facts.get("axis")
    if dtype != "F32" or step.dtype != word_type("F32"):
        raise ValueError(f"codes stand for F32 values in steps of F32, not for {dtype}")
    if "lowest" in packed.parts:
        lowest = packed.parts["lowest"].words.astype("<u2").view("<i2").astype(np.int64)
    else:
        lowest = np.full(step.shape, packed.facts.get("lowest", 0), np.int64)
    grid = CodeGrid(step.view(np.float32), lowest, axis, packed.facts.get("bits", 8))
    if not grid.fits(shape):
        raise ValueError(f"{step.size} steps along axis {axis} do not fit the shape {shape}")
    return grid


def sparse_codes_form(name: str, role: str) -> Form:
    """The codes other than zero, and their places."""

    def pack(plain: Plain) -> Packed | None:
        codes, grid = _smallest(plain)
        if codes is None:
            return None
        kept = (codes & (2**grid.bits - 1)) != 0
        packed = _with_grid(name, codes[kept], grid)
        return Packed(name, {**packed.parts, **places(kept, role)}, packed.facts)

    def unpack(packed: Packed, dtype: str, shape: tuple[int, ...]) -> Words:
        grid = _grid_of(packed, dtype, shape)
        kept = kept_at(packed.parts, element_count(shape))
        stored = packed.parts["codes"].words
        codes = from_small(stored, grid.bits, int(np.count_nonzero(kept)))
        return _from_stored(spread(codes, kept), grid, shape)

    return Form(pack, unpack, frozenset([role, "codes", "step"]))


# --- a palette -----------------------------------------------------------------------------


def pack_palette(plain: Plain) -> Packed | None:
    """The different values, and the number of one of them for each element.

    There is one palette for all elements, or one for each index of the first axis: a binary
    weight has two values in each channel.
    """
    rows = _rows(plain)
    found = [_palette(words, plain.dtype) for words in rows if _may_be_few(words)]
    fitting = [packed for packed in found if packed is not None]
    return min(fitting, key=lambda packed: packed.nbytes, default=None)


def _rows(plain: Plain) -> list[Words]:
    if not plain.words.size:
        return []
    whole = plain.words.reshape(1, -1)
    channels = plain.shape[0] if len(plain.shape) > 1 else 1
    return [whole] if channels == 1 else [whole, plain.words.reshape(channels, -1)]


def _may_be_few(rows: Words) -> bool:
    return np.unique(rows[0, :_SAMPLE]).size <= _MOST


def _palette(rows: Words, dtype: str) -> Packed | None:
    """Return rows of words, each by its palette of at most 16."""
    ordered = np.sort(rows, axis=1)
    starts = np.ones(ordered.shape, np.bool_)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counts = np.count_nonzero(starts, axis=1)
    most = int(counts.max())
    if most > _MOST:
        return None
    bits = max((most - 1).bit_length(), 1)
    values = np.empty((len(rows), 2**bits), rows.dtype)
    values[:] = ordered[:, -1:]
    for row in range(len(rows)):
        values[row, : counts[row]] = ordered[row, starts[row]]
    numbers = np.zeros(rows.shape, np.uint8)
    for column in range(1, most):
        above = values[:, column : column + 1] > values[:, column - 1 : column]
        numbers += above & (rows >= values[:, column : column + 1])
    parts = {
        "indices": Part(to_small(numbers.reshape(-1), bits), "U8"),
        "values": Part(values.reshape(-1), dtype),
    }
    facts: dict[str, Any] = {"bits": bits} if len(rows) == 1 else {"bits": bits, "axis": 0}
    return Packed("palette", parts, facts)


def unpack_palette(packed: Packed, dtype: str, shape: tuple[int, ...]) -> Words:
    bits, values = packed.facts.get("bits", 8), packed.parts["values"].words
    rows = shape[0] if packed.facts.get("axis") == 0 and shape else 1
    if values.size != rows << bits or values.dtype != word_type(dtype):
        raise ValueError(f"a palette of {values.size} values does not fit {rows} of {bits} bits")
    numbers = from_small(packed.parts["indices"].words, bits, element_count(shape))
    rows_of = values.reshape(rows, -1)
    return np.take_along_axis(rows_of, numbers.reshape(rows, -1).astype(np.intp), 1).reshape(-1)
