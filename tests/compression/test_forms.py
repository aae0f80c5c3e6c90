# SPDX-License-Identifier: Apache-2.0
"""Forms of packed tensors: every bit comes back, the smallest form is taken, damage is noticed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nncf.compression.forms import FORMS, pack, unpack
from nncf.compression.packed_tensor import DTYPES, CodeGrid, Packed, Part, Plain, word_type
from nncf.compression.places import from_bits, from_gaps, from_small, to_bits, to_gaps, to_small

INTERESTING = {
    1: [0, 0, 0, 1, 0x80, 0xFF],
    2: [0, 0, 0, 0x8000, 0x7FC0, 0x3F80, 1],
    4: [0, 0, 0, 0x80000000, 0x7FC00001, 0x3F800000, 1],
    8: [0, 0, 0, 1 << 63, 0x7FF8000000000001, 1],
}
"""Zeros, negative zeros, NaN, denormal numbers: what a model's tensors may hold."""


def words_of(dtype):
    size = DTYPES[dtype]
    elements = st.sampled_from(INTERESTING[size]) | st.integers(0, 2 ** (8 * size) - 1)
    return arrays.arrays(word_type(dtype), st.integers(0, 70), elements=elements)


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16", "F8_E5M2", "I64", "I8", "C64"])
@pytest.mark.parametrize("form", ["dense", "bitmask", "gaps", "signed_bitmask"])
@given(data=st.data())
def test_every_bit_comes_back(dtype, form, data):
    """Whatever the bits of a tensor are, each form that takes it returns the same bits."""
    words = data.draw(words_of(dtype))
    packed = FORMS[form].pack(Plain(words, dtype, words.shape))
    if packed is None:
        assert form == "signed_bitmask"
        assert not (words == 1 << (8 * DTYPES[dtype] - 1)).any()
        return
    back = unpack(packed, dtype, words.shape)
    assert back.dtype == words.dtype
    assert back.tobytes() == words.tobytes()


@given(arrays.arrays(np.bool_, st.integers(0, 40)))
def test_truth_values_take_a_bit(flags):
    """Truth values come back from one bit each."""
    packed = FORMS["bits"].pack(Plain(flags.view(np.uint8), "BOOL", flags.shape))
    assert packed.nbytes == -(-flags.size // 8)
    assert unpack(packed, "BOOL", flags.shape).tobytes() == flags.tobytes()


@pytest.mark.parametrize("form", ["codes", "bitmask_codes", "gaps_codes"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@given(data=st.data())
def test_values_on_a_grid_come_back(form, axis, data):
    """Code times step comes back to the bit, in as many bits as the codes that occur need."""
    shape = (3, 4, 5)
    count = 1 if axis is None else shape[axis]
    magnitudes = st.floats(2.0**-120, 2.0**60, width=32)
    step = data.draw(arrays.arrays(np.float32, count, elements=magnitudes))
    lowest = data.draw(arrays.arrays(np.int64, count, elements=st.integers(-255, 0)))
    grid = CodeGrid(step, lowest, axis)
    first, last = sorted(data.draw(st.tuples(st.integers(0, 255), st.integers(0, 255))))
    offsets = data.draw(arrays.arrays(np.int64, shape, elements=st.integers(first, last)))
    codes = grid.along(lowest, 3) + offsets
    words = (codes.astype(np.float32) * grid.along(step, 3)).reshape(-1).view("<u4")
    packed = FORMS[form].pack(Plain(words, "F32", shape, (grid,)))
    assert unpack(packed, "F32", shape).tobytes() == words.tobytes()
    bits = packed.facts.get("bits", 8)
    kept = 60 if form == "codes" else np.count_nonzero(codes % 2**bits)
    assert packed.parts["codes"].words.nbytes == -(-kept * bits // 8)
    others = tuple(i for i in range(3) if i != axis)
    span = int((codes.max(axis=others) - codes.min(axis=others)).max())
    assert max(span.bit_length(), 1) <= bits <= max((int(np.ptp(codes))).bit_length(), 1)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("form", ["codes", "bitmask_codes", "gaps_codes"])
def test_bytes_of_codes(form, bits):
    """A weight of b bits takes b bits for each element that is stored, and its steps."""
    draw = np.random.default_rng(bits)
    low = -(2 ** (bits - 1))
    codes = draw.integers(low, low + 2**bits, (16, 100))
    codes[0, :2] = low, low + 2**bits - 1
    codes[draw.random(codes.shape) < 0.3] = 0
    step = draw.uniform(0.1, 1, 16).astype(np.float32)
    words = (codes * step[:, None]).astype(np.float32).reshape(-1).view("<u4")
    grid = CodeGrid(step, np.full(16, -128), 0)
    packed = FORMS[form].pack(Plain(words, "F32", codes.shape, (grid,)))
    kept = codes.size if form == "codes" else np.count_nonzero(codes)
    assert packed.parts["codes"].words.nbytes == -(-kept * bits // 8)
    assert packed.facts.get("bits", 8) == bits
    assert packed.parts["step"].words.nbytes == 64
    assert unpack(packed, "F32", codes.shape).tobytes() == words.tobytes()


def test_files_of_before_have_eight_bits():
    """Codes without a number of bits are bytes, from the lowest code given, modulo 256."""
    grid = {"step": Part(np.array([0.5], np.float32).view("<u4"), "F32")}
    codes = Part(np.array([0, 127, 128, 255], np.uint8), "I8")
    packed = Packed("codes", {"codes": codes} | grid, {"lowest": -128})
    assert unpack(packed, "F32", (4,)).view(np.float32).tolist() == [0, 63.5, -64, -0.5]


def test_asymmetric_channels_need_no_more_bits():
    """Channels whose lowest codes differ are each counted from their own."""
    draw = np.random.default_rng(0)
    zero = draw.integers(0, 16, 64)
    codes = draw.integers(0, 16, (64, 100)) - zero[:, None]
    words = codes.astype(np.float32).reshape(-1).view("<u4")
    grid = CodeGrid(np.ones(64, np.float32), -zero, 0)
    packed = pack("w", Plain(words, "F32", codes.shape, (grid,)))
    assert (packed.form, packed.facts["bits"]) == ("codes", 4)
    assert packed.nbytes == 64 * 50 + 64 * (4 + 2)
    assert unpack(packed, "F32", codes.shape).tobytes() == words.tobytes()


@pytest.mark.parametrize("channels", [1, 3, 40])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("dtype", ["F32", "F16", "I64", "U8"])
def test_a_palette_gives_every_bit_back(channels, count, dtype):
    """Tensors of few values take the bits of a number each, and a palette, by channel or in all."""
    draw = np.random.default_rng(count)
    shape = (channels, 333)
    palette = draw.integers(0, 255, (channels, count)).astype(word_type(dtype))
    palette[0, 0] = 1 << (8 * DTYPES[dtype] - 1)
    words = np.take_along_axis(palette, draw.integers(0, count, shape), 1).reshape(-1)
    packed = FORMS["palette"].pack(Plain(words, dtype, shape))
    back = unpack(packed, dtype, shape)
    assert back.dtype == words.dtype
    assert back.tobytes() == words.tobytes()
    bits = packed.facts["bits"]
    assert 2 ** (bits - 1) < max(count, 2) or "axis" not in packed.facts
    assert packed.parts["indices"].words.nbytes == -(-channels * 333 * bits // 8)


def test_binary_weights_take_a_bit():
    """A weight with two values in each channel takes a bit each and two values a channel."""
    draw = np.random.default_rng(0)
    scale = draw.uniform(0.1, 1, (64, 1)).astype(np.float32)
    words = np.where(draw.random((64, 288)) < 0.5, -scale, scale).reshape(-1).view("<u4")
    packed = pack("w", Plain(words, "F32", (64, 288)))
    assert packed.form == "palette"
    assert packed.nbytes == 64 * 288 // 8 + 64 * 8
    assert unpack(packed, "F32", (64, 288)).tobytes() == words.tobytes()


def test_many_values_have_no_palette():
    """With 17 values a palette is refused, also when the first elements are alike."""
    words = np.zeros(5000, "<u4")
    words[-17:] = np.arange(17)
    assert FORMS["palette"].pack(Plain(words, "F32", words.shape)) is None


@pytest.mark.parametrize("count", [0, 1, 7, 8, 2**20 + 9])
@pytest.mark.parametrize("bits", range(1, 9))
def test_small_numbers_come_back(bits, count):
    """Numbers of b bits take b bits each, the first in the lowest bits."""
    numbers = np.random.default_rng(0).integers(0, 2**bits, count).astype(np.uint8)
    stored = to_small(numbers, bits)
    assert stored.size == -(-count * bits // 8)
    np.testing.assert_array_equal(from_small(stored, bits, count), numbers)
    assert to_small(np.array([1, 2], np.uint8), 3).tolist() == [0b010001]


def on_grid():
    grid = CodeGrid(np.array([0.1], np.float32), np.array([-128]))
    values = np.arange(-128, 128, dtype=np.float32) * grid.step
    return values, grid


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -0.0, 0.05, 12.8, np.nextafter(np.float32(1), 2)]
)
def test_a_value_beside_the_grid_is_not_stored_as_a_code(value):
    """One element that no code gives back to the bit keeps a tensor from being stored as codes."""
    values, grid = on_grid()
    plain = Plain(values.view("<u4"), "F32", values.shape, (grid,))
    assert pack("w", plain).form == "codes"
    values[5] = value
    assert pack("w", plain).form in ("dense", "bitmask")


def test_the_grid_that_fits_is_taken():
    """Of several grids the first on which all values lie is used; grids of wrong size are not."""
    values, grid = on_grid()
    wrong = CodeGrid(np.ones(3, np.float32), np.zeros(3, np.int64), 0)
    beyond = dataclasses.replace(wrong, axis=7)
    other = CodeGrid(np.ones(1, np.float32), np.zeros(1, np.int64))
    plain = Plain(values.view("<u4"), "F32", values.shape, (wrong, beyond, other, grid))
    assert pack("w", plain).parts["step"].words.view(np.float32) == np.float32(0.1)


@pytest.mark.parametrize(
    ("share", "sign", "form"),
    [
        (0.0, 1, "dense"),
        (0.01, 1, "dense"),
        (0.5, 1, "bitmask"),
        (0.95, 1, "gaps"),
        (0.5, -1, "signed_bitmask"),
    ],
)
def test_the_smallest_form_is_taken(share, sign, form):
    """Few zeros do not pay for a mask; negative zeros are worth a bit for their signs."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=4000).astype(np.float32)
    values[draw.random(4000) < share] = 0.0
    values = np.where(values == 0, np.float32(0) * sign, values)
    values[7] = 0.0
    packed = pack("w", Plain(values.view("<u4"), "F32", values.shape))
    assert packed.form == form
    kept = np.count_nonzero(values)
    signs = -(-(4000 - kept) // 8)
    bits = {"dense": 0, "bitmask": 500, "gaps": kept, "signed_bitmask": 500 + signs}[form]
    assert packed.nbytes == (16000 if form == "dense" else 4 * kept + bits)


def test_a_small_tensor_stays_as_it_is():
    """What a mask would save must be more than the words about it in the header."""
    values = np.zeros(32, np.float32)
    assert pack("w", Plain(values.view("<u4"), "F32", values.shape)).form == "dense"
    values = np.zeros(3200, np.float32)
    assert pack("w", Plain(values.view("<u4"), "F32", values.shape)).form == "gaps"


MASK = {"mask": Part(to_bits(np.array([1, 0, 1], bool)), "U8")}
TWO = {"values": Part(np.ones(2, "<u4"), "F32")}
STEP = {"step": Part(np.ones(1, np.float32).view("<u4"), "F32")}


@pytest.mark.parametrize(
    ("packed", "shape", "reason"),
    [
        (Packed("triangle", {}), (3,), '"triangle" is unknown; known are dense, bits, bitmask'),
        (Packed("bitmask", MASK), (3,), "lacks: values"),
        (
            Packed("bitmask", MASK | {"values": Part(np.ones(3, "<u4"), "F32")}),
            (3,),
            "places of 2 values are stored, and 3",
        ),
        (Packed("bitmask", MASK | TWO), (30,), "mask of 1 bytes is stored, 30 bits"),
        (Packed("bitmask", MASK | TWO), (2,), "beyond the end of a mask"),
        (Packed("gaps", TWO | {"gaps": Part(np.array([0, 2], "u1"), "U8")}), (3,), "beyond the"),
        (Packed("gaps", TWO | {"gaps": Part(np.array([0, 255], "u1"), "U8")}), (3,), "beyond the"),
        (
            Packed("gaps", TWO | {"gaps": Part(np.array([2], "u1"), "U8")}),
            (3,),
            "places of 1 values",
        ),
        (Packed("dense", {"": TWO["values"]}), (3,), "2 elements are stored, the shape has 3"),
        (
            Packed("codes", {"codes": Part(np.ones(2, "u1"), "U8")} | STEP),
            (3,),
            "2 bytes are stored for 3 numbers of 8 bits",
        ),
        (
            Packed("codes", {"codes": Part(np.ones(3, "u1"), "U8")} | STEP, {"axis": 1}),
            (3,),
            "1 steps along axis 1 do not fit",
        ),
        (
            Packed("palette", {"indices": Part(np.ones(1, "u1"), "U8")} | TWO, {"bits": 2}),
            (3,),
            "a palette of 2 values does not fit 1 of 2 bits",
        ),
    ],
)
def test_damaged_parts_are_noticed(packed, shape, reason):
    """Parts that do not belong together are refused with the reason."""
    with pytest.raises(ValueError, match=reason):
        unpack(packed, "F32", shape)


def test_the_order_of_bits_is_fixed():
    """The first flag is the lowest bit of the first byte; no other length is accepted."""
    assert to_bits(np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 1], bool)).tolist() == [1, 2]
    assert from_bits(np.array([1, 2], np.uint8), 10).nonzero()[0].tolist() == [0, 9]
    with pytest.raises(ValueError, match="a mask of 2 bytes"):
        from_bits(np.array([1, 2], np.uint8), 17)


@pytest.mark.parametrize("zeros", [0, 1, 254, 255, 256, 509, 510, 511, 1000])
def test_gaps_of_any_length(zeros):
    """A long gap takes a byte for each 255 elements, and comes back exactly."""
    flags = np.zeros(zeros + 300, bool)
    flags[zeros] = flags[-1] = True
    gaps = to_gaps(flags)
    assert gaps.tolist() == [255] * (zeros // 255) + [zeros % 255, 255, 298 - 255]
    assert np.array_equal(from_gaps(gaps, flags.size), flags)


@given(arrays.arrays(np.bool_, st.integers(0, 600), elements=st.just(False) | st.booleans()))
def test_gaps_of_any_flags(flags):
    """Any flags come back from their gaps."""
    assert np.array_equal(from_gaps(to_gaps(flags), flags.size), flags)
