# SPDX-License-Identifier: Apache-2.0
"""Forms: the ways in which a tensor can be stored so that every bit comes back.

A form sees a tensor as *words*, the bits of its elements as unsigned integers, so one code
serves all dtypes, and a negative zero or a NaN is a word like any other. ``pack`` tries every
form of ``FORMS`` and takes the smallest. To add a form, write its two functions and name them
there: files say by name which form a tensor has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.places import from_bits, from_gaps, to_bits, to_gaps

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

DENSE = "dense"
_OFFSET_DIGITS = 20  # of the two offsets that the header gives for each part


@dataclass(frozen=True)
class CodeGrid:
    """A grid on which a tensor may lie: code · ``step``, codes from ``lowest`` to lowest + 255.

    Both are flat, with one element, or one for each channel along ``axis``.
    """

    step: NDArray[np.float32]
    lowest: NDArray[np.int64]
    axis: int | None = None

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


def pack(name: str, plain: Plain) -> Packed:
    """Return the tensor in the form that takes the fewest bytes, its lines in the header too."""
    found = [form.pack(plain) for form in FORMS.values()]
    return min(
        (packed for packed in found if packed is not None),
        key=lambda packed: packed.nbytes + _header_bytes(name, plain, packed),
    )


def unpack(packed: Packed, dtype: str, shape: tuple[int, ...]) -> Words:
    """Return the words of a packed tensor, flat. Raises ValueError when it is damaged."""
    form = FORMS.get(packed.form)
    if form is None:
        raise ValueError(f'the form "{packed.form}" is unknown; known are {", ".join(FORMS)}')
    missing = sorted(form.roles - packed.parts.keys())
    if missing:
        raise ValueError(f'a tensor in the form "{packed.form}" lacks: {", ".join(missing)}')
    words = form.unpack(packed, dtype, shape)
    count = element_count(shape)
    if words.size != count:
        raise ValueError(f"{words.size} elements are stored, the shape has {count}")
    if words.dtype.itemsize != DTYPES[dtype]:
        raise ValueError(f"its values are not of the dtype {dtype}")
    return words


def element_count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def word_type(dtype: str) -> np.dtype[Any]:
    """Return the unsigned integer whose bits hold one element."""
    return np.dtype(f"<u{DTYPES[dtype]}")


def entry(packed: Packed, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what a file says about a packed tensor, as plain JSON."""
    return {"form": packed.form, "dtype": dtype, "shape": list(shape), **packed.facts}


def _header_bytes(name: str, plain: Plain, packed: Packed) -> int:
    if packed.form == DENSE:
        described, names = 0, [name]
    else:  # text in a text: quotes are escaped
        text = json.dumps({name: entry(packed, plain.dtype, plain.shape)})
        described, names = len(json.dumps(text)), [f"{name}::{role}" for role in packed.parts]
    around = len('"":{"dtype":"BF16","shape":[],"data_offsets":[,]},')
    shapes = len(str(plain.shape)) if packed.form == DENSE else 8 * len(names)
    return described + shapes + sum(len(n) + around + _OFFSET_DIGITS for n in names)


# --- dense ---------------------------------------------------------------------------------


def _pack_dense(plain: Plain) -> Packed:
    return Packed(DENSE, {"": Part(plain.words, plain.dtype)})


def _unpack_dense(packed: Packed, _dtype: str, _shape: tuple[int, ...]) -> Words:
    return packed.parts[""].words


# --- zeros ---------------------------------------------------------------------------------


def _places(kept: NDArray[np.bool_], role: str) -> dict[str, Part]:
    """Return where something is kept: as a mask of bits or as gaps of bytes."""
    return {role: Part(to_bits(kept) if role == "mask" else to_gaps(kept), "U8")}


def _spread(
    values: Words, parts: Mapping[str, Part], count: int
) -> tuple[Words, NDArray[np.bool_]]:
    """Return words with zeros where nothing is kept, and the mask of those kept."""
    role = "mask" if "mask" in parts else "gaps"
    kept = (from_bits if role == "mask" else from_gaps)(parts[role].words, count)
    if int(np.count_nonzero(kept)) != values.size:
        raise ValueError(
            f"the {role} of {np.count_nonzero(kept)} values are stored, and {values.size} values"
        )
    words = np.zeros(count, values.dtype)
    words[kept] = values
    return words, kept


def _pack_bits(plain: Plain) -> Packed | None:
    """One bit for each truth value."""
    if plain.dtype != "BOOL" or not (plain.words <= 1).all():
        return None
    return Packed("bits", {"bits": Part(to_bits(plain.words != 0), "U8")})


def _unpack_bits(packed: Packed, _dtype: str, shape: tuple[int, ...]) -> Words:
    return from_bits(packed.parts["bits"].words, element_count(shape)).view(np.uint8)


def _sparse_form(name: str, role: str) -> Form:
    """The elements of which any bit is set, and their places."""

    def pack(plain: Plain) -> Packed:
        kept = plain.words != 0
        values = Part(plain.words[kept], plain.dtype)
        return Packed(name, {**_places(kept, role), "values": values})

    def unpack(packed: Packed, _dtype: str, shape: tuple[int, ...]) -> Words:
        return _spread(packed.parts["values"].words, packed.parts, element_count(shape))[0]

    return Form(pack, unpack, frozenset([role, "values"]))


def _pack_signed_bitmask(plain: Plain) -> Packed | None:
    """A bit mask that also leaves out negative zeros, at one more bit for each zero.

    A negative weight times a mask's 0 is one.
    """
    sign = _sign_bit(plain.words.dtype)
    kept = (plain.words & ~sign) != 0
    signs = plain.words[~kept] != 0
    if not signs.any():
        return None
    values, signed = Part(plain.words[kept], plain.dtype), Part(to_bits(signs), "U8")
    return Packed("signed_bitmask", {**_places(kept, "mask"), "values": values, "signs": signed})


def _unpack_signed_bitmask(packed: Packed, _dtype: str, shape: tuple[int, ...]) -> Words:
    values = packed.parts["values"].words
    words, kept = _spread(values, packed.parts, element_count(shape))
    dropped = np.flatnonzero(~kept)
    negative = from_bits(packed.parts["signs"].words, dropped.size)
    words[dropped[negative]] = _sign_bit(words.dtype)
    return words


def _sign_bit(dtype: np.dtype[Any]) -> Any:
    return dtype.type(1 << (8 * dtype.itemsize - 1))


# --- codes of at most 8 bits ---------------------------------------------------------------


def _pack_codes(plain: Plain) -> Packed | None:
    """One byte for each element, the code modulo 256, and the grid's steps."""
    if plain.dtype != "F32" or not plain.words.size:
        return None
    for grid in plain.grids:
        codes = _codes(plain, grid)
        if codes is not None:
            return _with_grid("codes", {}, codes, grid)
    return None


def _codes(plain: Plain, grid: CodeGrid) -> Words | None:
    """Return the codes modulo 256, flat; None when code · step misses a bit of any element."""
    values = plain.words.view(np.float32).reshape(plain.shape)
    if not (grid.fits(plain.shape) and np.isfinite(grid.step).all() and (grid.step > 0).all()):
        return None
    low = grid.along(grid.lowest, len(plain.shape))
    step = grid.along(grid.step, len(plain.shape)).astype(np.float64)
    codes = np.rint(values / step)
    if not ((codes >= low) & (codes <= low + 255)).all():  # NaN is not, either
        return None
    found = (codes.astype(np.int64) & 255).astype(np.uint8).reshape(-1)
    back = _values(found, grid, plain.shape)
    return found if np.array_equal(back, plain.words) else None


def _values(codes: Words, grid: CodeGrid, shape: tuple[int, ...]) -> Words:
    """Return the words of the values that codes modulo 256 stand for."""
    low = grid.along(grid.lowest, len(shape))
    numbers = ((codes.reshape(shape).astype(np.int64) - low) & 255) + low
    values = numbers.astype(np.float32) * grid.along(grid.step, len(shape))
    return np.ascontiguousarray(values).reshape(-1).view(word_type("F32"))


def _with_grid(form: str, parts: dict[str, Part], codes: Words, grid: CodeGrid) -> Packed:
    """Return codes and the grid that gives them their values."""
    lowest, facts = int(grid.lowest[0]), {} if grid.axis is None else {"axis": grid.axis}
    same = bool((grid.lowest == lowest).all())
    dtype = "I8" if same and lowest == -128 else "U8"
    found = {**parts, "codes": Part(codes, dtype)}
    found["step"] = Part(grid.step.view(word_type("F32")), "F32")
    if not same:
        found["lowest"] = Part(grid.lowest.astype("<i2").view("<u2"), "I16")
        return Packed(form, found, facts)
    return Packed(form, found, {**facts, "lowest": lowest})


def _unpack_codes(packed: Packed, dtype: str, shape: tuple[int, ...]) -> Words:
    grid = _grid_of(packed, dtype, shape)
    codes = packed.parts["codes"].words
    if codes.size != element_count(shape):
        raise ValueError(f"{codes.size} codes are stored, the shape has {element_count(shape)}")
    return _values(codes, grid, shape)


def _grid_of(packed: Packed, dtype: str, shape: tuple[int, ...]) -> CodeGrid:
    step, axis = packed.parts["step"].words, packed.facts.get("axis")
    if dtype != "F32" or step.dtype != word_type("F32"):
        raise ValueError(f"codes stand for F32 values in steps of F32, not for {dtype}")
    if "lowest" in packed.parts:
        lowest = packed.parts["lowest"].words.astype("<u2").view("<i2").astype(np.int64)
    else:
        lowest = np.full(step.shape, packed.facts.get("lowest", 0), np.int64)
    grid = CodeGrid(step.view(np.float32), lowest, axis)
    if not grid.fits(shape):
        raise ValueError(f"{step.size} steps along axis {axis} do not fit the shape {shape}")
    return grid


def _sparse_codes_form(name: str, role: str) -> Form:
    """The codes other than zero, and their places."""

    def pack(plain: Plain) -> Packed | None:
        packed = _pack_codes(plain)
        if packed is None:
            return None
        codes = packed.parts["codes"]
        kept = codes.words != 0
        parts = {**packed.parts, **_places(kept, role)}
        return Packed(name, parts | {"codes": Part(codes.words[kept], codes.dtype)}, packed.facts)

    def unpack(packed: Packed, dtype: str, shape: tuple[int, ...]) -> Words:
        grid, values = _grid_of(packed, dtype, shape), packed.parts["codes"].words
        return _values(_spread(values, packed.parts, element_count(shape))[0], grid, shape)

    return Form(pack, unpack, frozenset([role, "codes", "step"]))


FORMS = {
    DENSE: Form(_pack_dense, _unpack_dense, frozenset([""])),
    "bits": Form(_pack_bits, _unpack_bits, frozenset(["bits"])),
    "bitmask": _sparse_form("bitmask", "mask"),
    "gaps": _sparse_form("gaps", "gaps"),
    "signed_bitmask": Form(
        _pack_signed_bitmask, _unpack_signed_bitmask, frozenset(["mask", "values", "signs"])
    ),
    "codes": Form(_pack_codes, _unpack_codes, frozenset(["codes", "step"])),
    "bitmask_codes": _sparse_codes_form("bitmask_codes", "mask"),
    "gaps_codes": _sparse_codes_form("gaps_codes", "gaps"),
}
"""Every form by the name that files use, the plainest first: it wins where two are equal."""
