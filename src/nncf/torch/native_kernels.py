# SPDX-License-Identifier: Apache-2.0
"""Fake quantization in C (``fake_quantize.c``), for float32 tensors of the processor."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from nncf.torch import compiler
from nncf.torch.reference_kernels import dense, memory_shape, quantize_eager

SOURCE = Path(__file__).with_name("fake_quantize.c")


class Kernels:
    """The loaded library. Construction builds it if need be and raises ``BuildError``."""

    def __init__(self) -> None:
        library = compiler.load(SOURCE)
        address, count = ctypes.c_void_p, ctypes.c_longlong
        try:
            self._quantize = library.nncf_fake_quantize
            self._gradient = library.nncf_fake_quantize_backward
        except AttributeError as error:
            raise compiler.BuildError(f"the built library is damaged: {error}") from error
        self._quantize.argtypes = [address] * 3 + [count] * 3 + [ctypes.c_int]
        self._quantize.restype = None
        self._gradient.argtypes = [address] * 5 + [count] * 3 + [ctypes.c_int]
        self._gradient.restype = ctypes.c_int
        self._check()

    def _check(self) -> None:
        """Refuse a library whose bits differ (a compiler wrapper that adds fast maths)."""
        with torch.no_grad(), torch.device("cpu"):
            x = torch.linspace(-3.0, 3.0, 1201, dtype=torch.float32)
            step = torch.tensor(0.0123, dtype=torch.float32)
            codes = [step * 0 - 128, step * 0 + 127, step * -128, step * 127]
            grid = torch.stack([step, 1 / step, *codes])
            if not torch.equal(self.quantize(x, grid[:, None], None), quantize_eager(x, grid)):
                raise compiler.BuildError("the compiled arithmetic differs from PyTorch's")

    def quantize(self, x: torch.Tensor, grid: torch.Tensor, axis: int | None) -> torch.Tensor:
        """Return x on the grid [rows, channels]."""
        x = dense(x)
        out = torch.empty_like(x)
        self._quantize(
            x.data_ptr(),
            out.data_ptr(),
            grid.data_ptr(),
            *memory_shape(x, axis),
            torch.get_num_threads(),
        )
        return out

    def gradient(
        self, gradient: torch.Tensor, x: torch.Tensor, grid: torch.Tensor, axis: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of x and the sums [3, channels] of ``gradient_reference``."""
        x = dense(x)
        gradient = dense(gradient, like=x)
        out = torch.empty_like(x)
        sums = torch.empty(3, grid.shape[1], dtype=torch.float64, device="cpu")
        failed = self._gradient(
            gradient.data_ptr(),
            x.data_ptr(),
            out.data_ptr(),
            grid.data_ptr(),
            sums.data_ptr(),
            *memory_shape(x, axis),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for the partial sums of a quantizer's gradient")
        return out, sums.float()
