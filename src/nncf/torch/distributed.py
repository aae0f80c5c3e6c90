# SPDX-License-Identifier: Apache-2.0
"""Several processes training one model: rank 0 decides what initialisation found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nncf.errors import DataError
from nncf.torch.intercept import compression_of

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Tell whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_main_process() -> bool:
    """Tell whether this process is rank 0, or alone."""
    return not is_distributed() or dist.get_rank() == 0


def agree(model: nn.Module) -> None:
    """Give all ranks what rank 0 has: the CompressionOps and batch norms of a model.

    Parameters, buffers and the flags ``enabled`` and ``initialized`` of the ops. Of a model that
    is not compressed, everything. All ranks must call it; alone it does nothing.
    """
    if not is_distributed():
        return
    compression = compression_of(model)
    modules = [compression or model]
    modules += [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    flags = _flags(modules[0])
    received: list[Any] = [flags]
    dist.broadcast_object_list(received, src=0)
    for name, module in modules[0].named_modules():
        for flag, value in received[0].get(name, {}).items():
            if getattr(module, flag) != value:
                setattr(module, flag, value)
    seen: set[int] = set()
    with torch.no_grad():
        for module in modules:
            for tensor in [*module.parameters(), *module.buffers()]:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    _broadcast(tensor)


def _flags(module: nn.Module) -> dict[str, dict[str, bool]]:
    names = ("enabled", "initialized")
    return {
        path: {name: bool(getattr(part, name)) for name in names}
        for path, part in module.named_modules()
        if all(isinstance(getattr(part, name, None), bool) for name in names)
    }


def _broadcast(tensor: Tensor) -> None:
    # NCCL moves only tensors of the GPU; no backend moves all dtypes, all move bytes.
    device = torch.device("cuda") if dist.get_backend() == "nccl" else tensor.device
    data = tensor.detach().to(device, copy=True).contiguous().reshape(-1)
    dist.broadcast(data.view(torch.uint8), src=0)
    tensor.copy_(data.reshape(tensor.shape))


def from_main(value: Value) -> Value:
    """Return what rank 0 passed, on every rank; alone, what was passed. All ranks must call it."""
    if not is_distributed():
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


@contextmanager
def together() -> Iterator[None]:
    """Raise DataError on every rank when the block failed on one, so that none waits for it."""
    if not is_distributed():
        yield
        return
    failure: BaseException | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 (raised again below, when the others know)
        failure = error
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(told):
        if message is not None:
            raise DataError(
                f"Initialisation failed on rank {rank}, so it stops here too: {message}"
            )
