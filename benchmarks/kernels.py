# SPDX-License-Identifier: Apache-2.0
"""Fake quantization of 4 million floats, forward and backward, beside PyTorch's operators.

    python -m benchmarks.kernels [--threads 2] [--repeat 21]

Medians of calls that take turns, and what each way costs before its first result.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.torch import FakeQuantizer
from nncf.torch import compiler, kernels, native_kernels

SIZE = (64, 64, 32, 32)  # 4,194,304 elements, 64 channels


def quantizer(*, per_channel: bool, mode: str) -> FakeQuantizer:
    scheme = Scheme(mode=mode, signed=True, per_channel=per_channel)  # type: ignore[arg-type]  # a str
    made = FakeQuantizer(scheme, (1, SIZE[1], 1, 1) if per_channel else (1,))
    made.set_range(torch.tensor(-2.5), torch.tensor(2.5))
    return made


def ours(way: str, *, per_channel: bool = False, mode: str = "symmetric") -> Callable[..., None]:
    """A step of our quantizer, computed in the way named."""
    made = quantizer(per_channel=per_channel, mode=mode)

    def step(x: torch.Tensor, gradient: torch.Tensor) -> None:
        kernels.use(way)
        if kernels.way_for(x) != way:
            raise SystemExit(f"the {way} kernels cannot be had on this machine")
        made(x).backward(gradient)

    return step


def learnable(*, per_channel: bool = False) -> Callable[..., None]:
    """A step of PyTorch's fake-quantize with learned scale."""
    channels = SIZE[1] if per_channel else 1
    scale = torch.full((channels,), 2.5 / 127, requires_grad=True)
    zero = torch.zeros(channels, requires_grad=True)
    grain = "channel" if per_channel else "tensor"
    operator = getattr(torch, f"_fake_quantize_learnable_per_{grain}_affine")

    def step(x: torch.Tensor, gradient: torch.Tensor) -> None:
        axis = (1,) if per_channel else ()
        out = operator(x, scale, zero, *axis, -128, 127, 1)
        out.backward(gradient)

    return step


def convolution() -> Callable[..., None]:
    """A step of the operation whose input is quantized, for scale."""
    layer = nn.Conv2d(SIZE[1], SIZE[1], 3, padding=1, bias=False)

    def step(x: torch.Tensor, gradient: torch.Tensor) -> None:
        layer(x).backward(gradient)

    return step


def cold_build() -> float:
    """Return the seconds that building the C kernels takes with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        compiler.build(compiler.find_compiler(), native_kernels.SOURCE, Path(folder) / "library.so")
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x = torch.randn(SIZE, requires_grad=True)
    gradient = torch.randn(SIZE)
    steps = {
        "nncf native, per tensor": ours("native"),
        "nncf native, asymmetric": ours("native", mode="asymmetric"),
        "nncf native, per channel": ours("native", per_channel=True),
        "nncf eager, per tensor": ours("eager"),
        "nncf eager, per channel": ours("eager", per_channel=True),
        "nncf inductor, per tensor": ours("inductor"),
        "ATen learnable, per tensor": learnable(),
        "ATen learnable, per channel": learnable(per_channel=True),
        "convolution 64→64, 3×3": convolution(),
    }
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.repeat + 1):
        for name, step in steps.items():
            x.grad = None
            start = time.perf_counter()
            step(x, gradient)
            seconds = time.perf_counter() - start
            if turn:
                times[name].append(seconds)
            else:
                first[name] = seconds
    print(f"{x.numel():,} floats, {arguments.threads} threads; building the C kernels anew takes")
    print(f"{cold_build():.2f} s\n\n{'':<30}{'forward + backward, ms':>24}{'first call, ms':>16}")
    for name, taken in times.items():
        print(f"{name:<30}{statistics.median(taken) * 1e3:>24.2f}{first[name] * 1e3:>16.0f}")


if __name__ == "__main__":
    main()
