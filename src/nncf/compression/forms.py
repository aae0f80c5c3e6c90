# SPDX-License-Identifier: Apache-2.0
"""Forms: the ways in which a tensor can be stored so that every bit comes back.

``pack`` tries every form of ``FORMS`` and takes the smallest. To add a form, write its two
functions and name them there: files say by name which form a tensor has.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from nncf.compression.code_forms import (
    pack_codes,
    pack_palette,
    sparse_codes_form,
    unpack_codes,
    unpack_palette,
)
from nncf.compression.packed_tensor import (
    DTYPES,
    Form,
    Packed,
    Part,
    Plain,
    Words,
    element_count,
)
from nncf.compression.places import from_bits, kept_at, places, spread, to_bits

DENSE = "dense"
_OFFSET_DIGITS = 20  # of the two offsets that the header gives for each part


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
        return Packed(name, {**places(kept, role), "values": values})

    def unpack(packed: Packed, _dtype: str, shape: tuple[int, ...]) -> Words:
        return spread(packed.parts["values"].words, kept_at(packed.parts, element_count(shape)))

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
    return Packed("signed_bitmask", {**places(kept, "mask"), "values": values, "signs": signed})


def _unpack_signed_bitmask(packed: Packed, _dtype: str, shape: tuple[int, ...]) -> Words:
    values = packed.parts["values"].words
    kept = kept_at(packed.parts, element_count(shape))
    words = spread(values, kept)
    dropped = np.flatnonzero(~kept)
    negative = from_bits(packed.parts["signs"].words, dropped.size)
    words[dropped[negative]] = _sign_bit(words.dtype)
    return words


def _sign_bit(dtype: np.dtype[Any]) -> Any:
    return dtype.type(1 << (8 * dtype.itemsize - 1))


FORMS = {
    DENSE: Form(_pack_dense, _unpack_dense, frozenset([""])),
    "bits": Form(_pack_bits, _unpack_bits, frozenset(["bits"])),
    "bitmask": _sparse_form("bitmask", "mask"),
    "gaps": _sparse_form("gaps", "gaps"),
    "signed_bitmask": Form(
        _pack_signed_bitmask, _unpack_signed_bitmask, frozenset(["mask", "values", "signs"])
    ),
    "codes": Form(pack_codes, unpack_codes, frozenset(["codes", "step"])),
    "bitmask_codes": sparse_codes_form("bitmask_codes", "mask"),
    "gaps_codes": sparse_codes_form("gaps_codes", "gaps"),
    "palette": Form(pack_palette, unpack_palette, frozenset(["indices", "values"])),
}
"""Every form by the name that files use, the plainest first: it wins where two are equal."""
