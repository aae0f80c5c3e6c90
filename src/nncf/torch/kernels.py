# SPDX-License-Identifier: Apache-2.0
"""Fake quantization of tensors, fast: one function, three ways to compute it; random numbers.

``eager``
    plain PyTorch operations; the truth, and what every tracer (``torch.compile``,
    ``torch.export``, ``torch.jit``, ``FakeTensor``) sees.
``native``
    one pass forward and one backward in C, for float32 tensors of the processor. Built in a
    fraction of a second at first use, where there is a C compiler, and kept.
``inductor``
    the reference form through ``torch.compile``, for large tensors of accelerators with Triton.

All give the same forward bits; sums of the backward pass differ in their last digits. The way
depends on nothing but the machine and the tensor, so a resumed run repeats its bits. To choose
by hand: the variable ``NNCF_KERNELS`` (``auto``, ``eager``, ``native``, ``inductor``) or
``use``. Nothing is built at import.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from nncf.torch import inductor_kernels, native_kernels, random_kernels, reference_kernels
from nncf.torch.random_kernels import next_key
from nncf.torch.reference_kernels import (
    ABOVE_GAIN,
    BELOW_GAIN,
    ERROR_GAIN,
    HIGH,
    HIGHEST,
    LOW,
    LOW_GAIN,
    LOWEST,
    PIECE,
    STEP,
)

__all__ = [
    "ABOVE_GAIN",
    "ERROR_GAIN",
    "HIGH",
    "HIGHEST",
    "LOW",
    "LOWEST",
    "STEP",
    "fake_quantize",
    "next_key",
    "passed",
    "recompute_saved",
    "uniform",
    "use",
    "way_for",
]

VARIABLE = "NNCF_KERNELS"
WAYS = ("auto", "eager", "native", "inductor")
INDUCTOR_FROM = 1 << 18  # elements; below, a few eager launches cost little

_logger = logging.getLogger("nncf")
_lock = threading.RLock()
_forced: dict[str, str] = {}  # "way": the one forced by ``use``


class _Kernels(Protocol):
    def quantize(self, x: torch.Tensor, grid: torch.Tensor, axis: int | None) -> torch.Tensor: ...

    def gradient(
        self, gradient: torch.Tensor, x: torch.Tensor, grid: torch.Tensor, axis: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


_MAKERS: dict[str, Callable[[], Any]] = {
    "native": native_kernels.Kernels,
    "inductor": inductor_kernels.Kernels,
    "random": random_kernels.Kernels,
}
_made: dict[str, Any | None] = {}  # None: broken on this machine, do not try again


def use(way: str | None) -> None:
    """Force one way for this process; None returns to ``NNCF_KERNELS`` or to ``auto``."""
    if way is not None and way not in WAYS:
        raise ValueError(f'kernels.use("{way}"): expected one of {", ".join(WAYS)} or None')
    _forced.clear()
    if way is not None:
        _forced["way"] = way


def chosen() -> str:
    """Return the way asked for: by ``use``, else by ``NNCF_KERNELS``, else ``auto``."""
    way = _forced.get("way") or os.environ.get(VARIABLE) or "auto"
    if way not in WAYS:
        raise ValueError(f"{VARIABLE}={way}: expected one of {', '.join(WAYS)}")
    return way


def way_for(x: torch.Tensor) -> str:
    """Return which way a float32 tensor takes: "eager", "native" or "inductor"."""
    if _traced(x) or x.numel() == 0:
        return "eager"
    way = chosen()
    if way == "auto":
        large = x.numel() >= INDUCTOR_FROM and x.device.type in ("cuda", "xpu")
        way = "inductor" if large and _has_triton() else "native"
    if way == "native" and x.device.type != "cpu":
        return "eager"
    return "eager" if way != "eager" and _kernels(way) is None else way


def _traced(x: torch.Tensor) -> bool:
    """Return whether somebody records operations, or x has no memory that C could read."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(x) not in (torch.Tensor, torch.nn.Parameter)
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or x.device.type == "meta"
    )


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _kernels(way: str) -> Any | None:
    if way not in _made:
        with _lock:
            if way not in _made:
                try:
                    _made[way] = _MAKERS[way]()
                except Exception as error:  # noqa: BLE001 — whatever fails, training must go on
                    _give_up(way, error)
    return _made[way]


def _give_up(way: str, error: BaseException) -> None:
    with _lock:
        if way in _made and _made[way] is None:
            return
        _made[way] = None
    lines = str(error).strip().splitlines() or [type(error).__name__]
    _logger.warning(
        "The %s kernels are not available; plain PyTorch operations give the same results, "
        "more slowly. Reason: %s",
        way,
        lines[0],
    )


def _quantize(x: torch.Tensor, grid: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return float32 x on the grid [rows, channels]."""
    way = way_for(x)
    if way != "eager":
        kernels: _Kernels | None = _kernels(way)
        assert kernels is not None
        try:
            return kernels.quantize(x, grid, axis)
        except Exception as error:  # noqa: BLE001 — the eager form below replaces it
            _give_up(way, error)
    rows = reference_kernels.broadcast(grid, x.dim(), axis)
    if _traced(x):
        return reference_kernels.quantize_reference(x, rows)
    return reference_kernels.quantize_eager(x, rows)


def _gradient(
    gradient: torch.Tensor, x: torch.Tensor, grid: torch.Tensor, axis: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of x, and sums [3, channels] for those of the parameters."""
    way = way_for(x)
    if way != "eager" and not _traced(gradient):
        kernels: _Kernels | None = _kernels(way)
        assert kernels is not None
        try:
            return kernels.gradient(gradient, x, grid, axis)
        except Exception as error:  # noqa: BLE001 — the eager form below replaces it
            _give_up(way, error)
    rows = reference_kernels.broadcast(grid, x.dim(), axis)
    traced = _traced(x) or _traced(gradient)
    if axis is None and x.device.type == "cpu" and not traced and x.numel() > PIECE:
        return reference_kernels.gradient_in_pieces(gradient, x, rows)
    function = reference_kernels.gradient_reference if traced else reference_kernels.gradient_eager
    dx, sums = function(gradient, x, rows, reference_kernels.summed_dims(x.dim(), axis))
    return dx, sums.reshape(3, grid.shape[1])


class _FakeQuantize(torch.autograd.Function):
    """The straight-through estimator with learned range; saves nothing but x and its grid."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        span: torch.Tensor,
        _low: torch.Tensor | None,
        grid: torch.Tensor,
        axis: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, grid)
        ctx.axis = axis
        ctx.shape = span.shape
        ctx.recomputable = not _saved_elsewhere()
        return _quantize(x.float(), grid, axis).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, grid = ctx.saved_tensors
        dx, sums = _gradient(gradient.float(), x.float(), grid, ctx.axis)
        span = low = None
        if ctx.needs_input_grad[1]:
            span = (sums * grid[ERROR_GAIN : BELOW_GAIN + 1]).sum(0).view(ctx.shape)
        if ctx.needs_input_grad[2]:
            low = ((sums[1] + sums[2]) * grid[LOW_GAIN]).view(ctx.shape)
        return dx.to(x.dtype), span, low, None, None


def fake_quantize(
    x: torch.Tensor,
    grid: torch.Tensor,
    *,
    span: torch.Tensor,
    low: torch.Tensor | None = None,
    axis: int | None = None,
) -> torch.Tensor:
    """Return x on its grid, differentiable in x and in the parameters behind the grid.

    ``x`` is floating point of any layout, ``grid`` float32 [10, channels] with the rows of
    ``reference_kernels``, channels along ``axis`` (None: one for all). ``span`` is the
    parameter (scale or range) whose gradient is the three sums weighted by the rows
    ERROR_GAIN, ABOVE_GAIN, BELOW_GAIN; ``low`` the one weighted by LOW_GAIN. The result has
    the dtype and the memory format of x.
    """
    return _FakeQuantize.apply(x, span, low, grid, axis)  # type: ignore[no-any-return,no-untyped-call]  # apply is untyped


def uniform(key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return float32 numbers from U(0, 1) that ``key``, int64 [1], determines on any machine."""
    if way_for(key) == "native":
        kernels = _kernels("random")
        if kernels is not None:
            numbers: torch.Tensor = kernels.uniform(key, shape)
            return numbers
    if key.device.type == "cpu" and not _traced(key):
        return random_kernels.uniform_in_pieces(key, shape)
    return random_kernels.uniform_reference(key, shape)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*parameters)
        return x.detach()  # not a view: autograd lets nobody write into views made here

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def passed(x: torch.Tensor, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return x; parameters that are trained get the gradient zero.

    Without any gradient DistributedDataParallel would refuse to go on, or had to leave them out
    from the start and train them apart once they are in use.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained or not torch.is_grad_enabled():
        return x
    return _Pass.apply(x, *trained)  # type: ignore[no-any-return,no-untyped-call]  # apply is untyped


@contextmanager
def recompute_saved(operands: Iterable[Any]) -> Iterator[None]:
    """Let an operation save how its quantized operands were made, instead of themselves.

    A convolution saves its input for the backward pass. Its quantized input is one cheap pass
    away from the tensor that the quantizer saves anyway, so within this context it is computed
    again when needed, and the step needs about the memory of floating point. ``operands`` are
    the operation's arguments; the context does nothing unless each tensor among them that
    takes part in the gradient is a fresh result of ``fake_quantize`` or a vector (a bias), and
    never while tracing or inside someone else's ``saved_tensors_hooks``.
    """
    recipes = _recipes(operands)
    if not recipes:
        yield
        return

    def pack(tensor: torch.Tensor) -> Any:
        recipe = recipes.get(tensor.untyped_storage().data_ptr())
        if recipe is None or recipe[0]._version != 0:
            # detached, or a saved result would keep its own node alive for ever
            return tensor.detach(), tensor._version
        return recipe[1], tensor.shape, tensor.stride(), tensor.storage_offset()

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        recipes.clear()  # the graph keeps ``pack``, which must not keep the operands


def _unpack(packed: Any) -> torch.Tensor:
    if isinstance(packed[0], torch.Tensor):
        tensor, version = packed
        if tensor._version != version:
            raise RuntimeError(
                f"a tensor of shape {tuple(tensor.shape)} needed for the backward pass was "
                f"changed in place after its use; replace the in-place operation"
            )
        return tensor
    node, shape, stride, offset = packed
    x, grid = node.saved_tensors  # complains, as usual, when x was changed in place
    out = _quantize(x.float(), grid, node.axis).to(x.dtype)
    return out.as_strided(shape, stride, offset)


def _saved_elsewhere() -> bool:
    """Return whether someone's hooks keep saved tensors, which may be asked for only once."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _recipes(operands: Iterable[Any]) -> dict[int, tuple[torch.Tensor, Any]]:
    """Return node and tensor of each quantized operand by the address of its memory."""
    if torch.jit.is_tracing() or not torch.is_grad_enabled() or _saved_elsewhere():
        return {}
    recipes: dict[int, tuple[torch.Tensor, Any]] = {}
    for operand in operands:
        if not isinstance(operand, torch.Tensor) or operand.dim() < 2:
            continue
        node = operand.grad_fn
        known = isinstance(node, _FakeQuantize._backward_cls) and node.recomputable
        if known and operand._version == 0:
            recipes[operand.untyped_storage().data_ptr()] = (operand, node)
        else:
            return {}
    return recipes
