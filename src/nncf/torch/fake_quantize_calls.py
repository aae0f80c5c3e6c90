# SPDX-License-Identifier: Apache-2.0
"""Watching the native quantizers of a stripped model, and replacing their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
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
    order, each named by ``labels``. Modules with two values (they have ``two_levels``, which gives
    the upper one) count by their path, ``<path>#<number>``, with 1 and 0 as codes.
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

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch a model: its calls of functions, and its modules with two values."""
        handles = [
            module.register_forward_hook(partial(self._after, path))
            for path, module in model.named_modules()
            if hasattr(module, "two_levels")
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _after(self, path: str, module: Any, _args: Any, result: Tensor) -> Tensor:
        name = f"{path}#{self.counts[path]}"
        self.counts[path] += 1
        if name not in self.deployed:
            return result
        high = module.two_levels().to(result.dtype)
        codes = self.deployed[name].astype(np.int64)
        scale = np.broadcast_to(high.float().numpy(), result.shape)
        trained = (result != 0).long().numpy()
        self.layers.append(compare_levels(self.labels.get(name, name), trained, codes, scale=scale))
        return result if codes.shape != tuple(result.shape) else torch.from_numpy(codes) * high
