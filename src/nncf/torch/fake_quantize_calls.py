# SPDX-License-Identifier: Apache-2.0
"""Watching the native fake-quantize calls of a stripped model, and replacing their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nncf.compression.parity import Comparison, compare_levels

Array = NDArray[Any]

# The function, and how many of its arguments after the input are its parameters.
PER_TENSOR = torch.fake_quantize_per_tensor_affine
PER_CHANNEL = torch.fake_quantize_per_channel_affine


@dataclass(frozen=True)
class Grid:
    """Scale and zero point, shaped to broadcast over the quantized tensor."""

    scale: Tensor
    zero: Tensor

    @classmethod
    def of_call(cls, func: Callable[..., Any], x: Tensor, args: tuple[Any, ...]) -> Grid:
        scale = torch.as_tensor(args[0], dtype=torch.float32)
        zero = torch.as_tensor(args[1], dtype=torch.float32)
        if func is PER_CHANNEL:
            shape = [-1 if axis == args[2] % x.dim() else 1 for axis in range(x.dim())]
            return cls(scale.reshape(shape), zero.reshape(shape))
        return cls(scale.reshape(()), zero.reshape(()))

    def codes(self, quantized: Tensor) -> Tensor:
        return torch.round(quantized.float() / self.scale + self.zero).long()

    def values(self, codes: Tensor) -> Tensor:
        return (codes.float() - self.zero) * self.scale


class DeployedValues(TorchFunctionMode):
    """Runs a stripped model on the values that the deployed file has at its quantizers.

    ``deployed`` maps the name of a call, as PyTorch's exporter counts them
    (``fake_quantize_per_tensor_affine``, ``…_1``, …), to the file's integer codes. Each such
    call is compared, then continues with the file's values, so that every operation is judged
    on its own and differences do not add up. ``layers`` collects the comparisons in
    order, each named by ``labels``.
    """

    def __init__(self, deployed: Mapping[str, Array], labels: Mapping[str, str]) -> None:
        super().__init__()
        self.labels = labels
        self.deployed = deployed
        self.counts: Counter[str] = Counter()
        self.layers: list[Comparison] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not PER_TENSOR and func is not PER_CHANNEL:
            return result
        base = func.__name__
        name = f"{base}_{self.counts[base]}" if self.counts[base] else base
        self.counts[base] += 1
        if name not in self.deployed:
            return result
        x, *parameters = [*args, *(kwargs or {}).values()]
        grid = Grid.of_call(func, x, tuple(parameters))
        codes = self.deployed[name].astype(np.int64)
        scale = np.broadcast_to(grid.scale.numpy(), result.shape)
        trained = grid.codes(result).numpy()
        self.layers.append(compare_levels(self.labels.get(name, name), trained, codes, scale=scale))
        if codes.shape != tuple(result.shape):
            return result
        return grid.values(torch.from_numpy(codes)).to(result.dtype)
