# SPDX-License-Identifier: Apache-2.0
"""Fake quantization through ``torch.compile``: the reference form as one fused kernel.

Compilation takes seconds to tens of seconds, so there are at most four pairs of graphs, each
compiled with example sizes that are large, uneven and all different, so that little about the
sizes is assumed. What remains: sums over few elements are formed by a second graph.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch

from nncf.torch.reference_kernels import (
    dense,
    gradient_reference,
    memory_shape,
    quantize_reference,
)

# Name of a view: example sizes, shape of the grid's rows in it, dimensions summed over.
_EXAMPLES: dict[str, tuple[int, ...]] = {
    "tensor": (1_000_003,),
    "rows": (67, 4801),
    "columns": (20011, 67),
    "blocks": (13, 67, 1009),
}
_SUMMED = {"tensor": (0,), "rows": (1,), "columns": (0,), "blocks": (0, 2)}


class Kernels:
    """Compiled graphs, prepared one view at a time when first needed."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[str, str, torch.device], Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def quantize(self, x: torch.Tensor, grid: torch.Tensor, axis: int | None) -> torch.Tensor:
        """Return x on the grid [rows, channels]."""
        x = dense(x)
        view, shape = _view_of(x, axis)
        out = self._graph("quantize", view, x.device)(_flat(x, shape), _rows(grid, view))
        return out.as_strided(x.shape, x.stride())

    def gradient(
        self, gradient: torch.Tensor, x: torch.Tensor, grid: torch.Tensor, axis: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of x and the sums [3, channels] of ``gradient_reference``."""
        x = dense(x)
        view, shape = _view_of(x, axis)
        gradient = _flat(dense(gradient, like=x), shape)
        graph = self._graph("gradient", view, x.device)
        out, sums = graph(gradient, _flat(x, shape), _rows(grid, view), _SUMMED[view])
        return out.as_strided(x.shape, x.stride()), sums.reshape(3, grid.shape[1])

    def _graph(self, name: str, view: str, device: torch.device) -> Callable[..., Any]:
        key = (name, view, device)
        if key not in self._prepared:
            with self._lock:
                if key not in self._prepared:
                    self._prepared[key] = _compile(name, view, device)
        return self._prepared[key]


def _compile(name: str, view: str, device: torch.device) -> Callable[..., Any]:
    function = quantize_reference if name == "quantize" else gradient_reference
    graph = torch.compile(function, dynamic=True, fullgraph=True)
    x = torch.zeros(_EXAMPLES[view], device=device)
    channels = 67 if view != "tensor" else 1
    grid = _rows(torch.ones(10, channels, device=device), view)
    if name == "quantize":
        graph(x, grid)
    else:
        graph(x, x.clone(), grid, _SUMMED[view])
    return graph


def _view_of(x: torch.Tensor, axis: int | None) -> tuple[str, tuple[int, ...]]:
    outer, channels, inner = memory_shape(x, axis)
    if channels == 1:
        return "tensor", (x.numel(),)
    if outer == 1:
        return "rows", (channels, inner)
    if inner == 1:
        return "columns", (outer, channels)
    return "blocks", (outer, channels, inner)


def _rows(grid: torch.Tensor, view: str) -> torch.Tensor:
    rows, channels = grid.shape
    shape = {
        "tensor": (rows,),
        "rows": (rows, channels, 1),
        "columns": (rows, 1, channels),
        "blocks": (rows, 1, channels, 1),
    }[view]
    return _flat(grid, shape)


def _flat(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the memory of a dense x in another shape, as a tensor that stands alone.

    A view would do but for the compiler, which assumes things about the tensor behind it.
    """
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), shape, strides)
