# SPDX-License-Identifier: Apache-2.0
"""Random numbers as a function of a key and a place, without a generator that moves on.

Whoever asks again with the same key gets the same numbers: a recomputed forward, another
process, another device, a resumed run. The mixing is that of C. Wellons, *Prospecting for Hash
Functions* (the function "lowbias32", 2018), with the second half of the key added between its
two multiplications, so that keys give different sequences and not shifted ones.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from nncf.torch import compiler
from nncf.torch.reference_kernels import PIECE

SOURCE = Path(__file__).with_name("random_numbers.c")
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)  # as signed integers of 32 bits
# Knuth's generator MMIX: all 2^64 keys come before one comes again.
_FACTOR, _SUMMAND = 6364136223846793005, 1442695040888963407


def uniform_reference(key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return numbers from U(0, 1), the ends excluded, as float32 on the key's device.

    ``key`` is int64 [1]. The numbers are odd multiples of 2^-24, so no rounding takes part.
    """
    return _numbers(key, 0, prod(shape)).reshape(shape)


def uniform_in_pieces(key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """``uniform_reference`` on the processor, with temporary tensors that stay in its cache."""
    out = torch.empty(shape, dtype=torch.float32, device=key.device)
    start = 0
    for piece in out.view(-1).split(PIECE):
        piece.copy_(_numbers(key, start, start + piece.numel()))
        start += piece.numel()
    return out


def _numbers(key: torch.Tensor, start: int, end: int) -> torch.Tensor:
    first, second = key.view(torch.int32)
    bits = torch.arange(start, end, dtype=torch.int32, device=key.device) + first
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _FIRST  # the shift copies the sign: take it away
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) + second
    bits = bits * _SECOND
    bits = bits ^ ((bits >> 16) & 0xFFFF)
    return ((bits >> 9).float() + 0.5) * 2.0**-23 + 0.5


@torch.no_grad()
def next_key(key: torch.Tensor) -> None:
    """Replace a key by the one after it, in place and without waiting for its device."""
    key.mul_(_FACTOR).add_(_SUMMAND)


class Kernels:
    """The loaded library. Construction builds it if need be and raises ``BuildError``."""

    def __init__(self) -> None:
        library = compiler.load(SOURCE)
        try:
            self._uniform = library.nncf_uniform
        except AttributeError as error:
            raise compiler.BuildError(f"the built library is damaged: {error}") from error
        self._uniform.argtypes = [
            *(ctypes.c_void_p, ctypes.c_longlong, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int)
        ]
        self._uniform.restype = None
        with torch.no_grad(), torch.device("cpu"):
            key = torch.tensor([-7_777_777_777_777_777_777])
            if not torch.equal(self.uniform(key, (1201,)), uniform_reference(key, (1201,))):
                raise compiler.BuildError("the compiled arithmetic differs from PyTorch's")

    def uniform(self, key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Return the numbers of ``uniform_reference``, for a key on the processor."""
        out = torch.empty(shape, dtype=torch.float32, device="cpu")
        first, second = key.view(torch.int32).tolist()
        self._uniform(out.data_ptr(), out.numel(), first, second, torch.get_num_threads())
        return out
