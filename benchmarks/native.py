# SPDX-License-Identifier: Apache-2.0
"""A network with PyTorch's own fake-quantize calls in it, made without nncf.

This is what a stripped model looks like, built the short way: ranges come from one forward on
given data. It serves to measure the exporters apart from the algorithm that trains ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

WEIGHTED = {F.conv2d, torch.conv2d, F.linear, torch.conv_transpose2d, F.conv_transpose2d}
PAIRED = {torch.add, Tensor.add, Tensor.__add__, torch.matmul, Tensor.matmul, Tensor.__matmul__}
SINGLE = {torch.mean, Tensor.mean, F.adaptive_avg_pool2d}
PASSING = {"max_pool2d", "boolean_dispatch", "dropout"}  # by name: F.max_pool2d is a wrapper


class Quantizers(TorchFunctionMode):
    """Quantizes what enters convolutions, linears, additions, products and means.

    The n-th quantizer met keeps the range of its first tensor; a tensor that several operations
    read is quantized once. Weights are put on their grid before.
    """

    def __init__(self, *, per_channel_depthwise: bool = False, half_range: bool = True) -> None:
        super().__init__()
        self.per_channel_depthwise = per_channel_depthwise
        self.weight_limit = 63 if half_range else 127
        self.scales: list[tuple[Tensor, bool]] = []
        self.weight_scales: list[Tensor] = []
        self.position = self.weight_position = 0
        self.done: dict[int, Tensor] = {}
        self.kept: list[Tensor] = []

    def __enter__(self) -> Any:
        self.position, self.weight_position, self.done, self.kept = 0, 0, {}, []
        return super().__enter__()

    def activation(self, x: Tensor, *, per_channel: bool = False) -> Tensor:
        if id(x) in self.done:
            return self.done[id(x)]
        if self.position == len(self.scales):
            signed = bool((x < 0).any())
            axes = [axis for axis in range(x.dim()) if axis != 1]
            bound = x.detach().abs().amax(axes) if per_channel else x.detach().abs().max()
            self.scales.append((bound.clamp(1e-3) / (127 if signed else 255), signed))
        scale, signed = self.scales[self.position]
        self.position += 1
        low, high = (-128, 127) if signed else (0, 255)
        if scale.dim():
            zeros = torch.zeros(len(scale), dtype=torch.int32)
            y = torch.fake_quantize_per_channel_affine(x, scale, zeros, 1, low, high)
        else:
            y = torch.fake_quantize_per_tensor_affine(x, float(scale), 0, low, high)
        self.remember(x, y)
        return y

    def remember(self, x: Tensor, y: Tensor) -> None:
        self.done[id(x)] = self.done[id(y)] = y
        self.kept += [x, y]

    def weight(self, w: Tensor) -> Tensor:
        first = self.weight_position == len(self.weight_scales)
        if first:
            bound = w.detach().flatten(1).abs().amax(1).clamp(1e-6)
            self.weight_scales.append(bound / self.weight_limit)
        scale = self.weight_scales[self.weight_position]
        self.weight_position += 1
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        quantized = torch.fake_quantize_per_channel_affine(w, scale, zeros, 0, -128, 127)
        if first:
            w.data.copy_(quantized)
        return quantized

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        args = list(args)
        if func in WEIGHTED:
            groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
            per_channel = self.per_channel_depthwise and groups == args[0].shape[1] > 1
            args[0] = self.activation(args[0], per_channel=per_channel)
            args[1] = self.weight(args[1])
        elif func in PAIRED:
            args[:2] = [self.activation(x) if x.dim() else x for x in args[:2]]
        elif func in SINGLE:
            args[0] = self.activation(args[0])
        elif getattr(func, "__name__", "") in PASSING:
            args[0] = self.activation(args[0])
            result = func(*args, **kwargs)
            self.remember(result, result)
            return result
        elif func is torch.cat:
            return self.concat(args[0], *args[1:], **kwargs)
        return func(*args, **kwargs)

    def concat(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        position = self.position
        if position == len(self.scales):
            bound = max(float(x.detach().abs().max()) for x in tensors)
            signed = any(bool((x < 0).any()) for x in tensors)
            scale = torch.tensor(bound / (127 if signed else 255))
            self.scales += [(scale, signed)] * len(tensors)
        result = torch.cat([self.activation(x) for x in tensors], *args, **kwargs)
        self.remember(result, result)
        return result


class Quantized(nn.Module):
    """``model`` with quantizers; the first call fixes the ranges."""

    def __init__(self, model: nn.Module, **options: bool) -> None:
        super().__init__()
        self.model = model
        self.quantizers = Quantizers(**options)

    def forward(self, *args: Any) -> Any:
        with self.quantizers:
            return self.model(*args)


def quantize(model: nn.Module, *args: Any, **options: bool) -> nn.Module:
    """Return ``model`` in eval mode with quantizers whose ranges fit ``args``."""
    quantized = Quantized(model.eval().requires_grad_(False), **options)
    quantized(*args)
    return quantized
