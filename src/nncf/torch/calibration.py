# SPDX-License-Identifier: Apache-2.0
"""Run a model over some of a loader's data and leave no trace."""

from __future__ import annotations

import copy
import dataclasses
import logging
import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nncf.errors import DataError
from nncf.resources import NNCFDataLoader
from nncf.torch.data import forward_arguments, how_to_tell
from nncf.torch.distributed import is_main_process
from nncf.torch.structure import tensors_in

_LOGGER = logging.getLogger("nncf")

FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
)
"""What a model raises when its inputs do not suit it."""


@dataclasses.dataclass(frozen=True)
class CalibrationBatch:
    """The forward arguments in one batch, how many samples it has, and what the loader yielded."""

    index: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    samples: int
    raw: Any


def calibration_batches(
    loader: Iterable[Any],
    samples: int,
    model: nn.Module,
    *,
    device: Any = None,
    description: str = "Calibration",
) -> Iterator[CalibrationBatch]:
    """Yield batches of a loader until they hold ``samples`` samples, on the model's device.

    A loader with fewer is used up, which is logged. ``device`` wins over the model's own.
    Raises DataError for an empty loader, or when forward's arguments cannot be told.
    """
    device = device if device is not None else device_of(model)
    seen = index = 0
    with progress(description, samples) as show:
        for raw in loader:
            args, kwargs = forward_arguments(raw, model, loader=loader)
            count = batch_size(args, kwargs, loader)
            args, kwargs = moved(args, device), moved(kwargs, device)
            yield CalibrationBatch(index, args, kwargs, count, raw)
            index, seen = index + 1, seen + count
            show(min(seen, samples))
            if seen >= samples:
                return
    if index == 0:
        raise DataError(
            f"{description}: the data loader ({type(loader).__name__}) yielded nothing. Expected at "
            "least one batch: check the size of its data set and drop_last; an iterator or "
            "generator can be used up only once, so register a DataLoader or a list."
        )
    _LOGGER.info(
        "%s: %d samples were asked for, the data loader has %d: all of them were used.",
        description,
        samples,
        seen,
    )


def batch_size(args: Any, kwargs: Any, loader: object = None) -> int:
    """Return how many samples the forward arguments hold.

    What an NNCFDataLoader says; else the length of the first argument that is a list (of
    images), or of the first tensor's first axis. If that is longer than the loader's own batch
    size, and the second axis is not, the tensor has the time first.
    """
    said = getattr(loader, "batch_size", None)
    said = said if isinstance(said, int) and said > 0 else 0
    if said and isinstance(loader, NNCFDataLoader):
        return said
    for value in [*args, *kwargs.values()]:
        if isinstance(value, list) and value:
            return len(value)
        first = next((tensor for tensor in tensors_in(value) if tensor.ndim > 0), None)
        if first is not None:
            later = first.ndim > 1 and first.shape[0] > said > 1 and first.shape[1] == said
            return said if later else max(first.shape[0], 1)
    return max(said, 1)


def run(model: nn.Module, batch: CalibrationBatch) -> Any:
    """Return what the model makes of a batch. Raises DataError that shows the batch when that fails."""
    try:
        return model(*batch.args, **batch.kwargs)
    except FORWARD_ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise DataError(
            f"The model failed on batch {batch.index} of the calibration data with "
            f"{type(error).__name__}: {error}. " + how_to_tell(batch.raw, model)
        ) from error


def moved(value: Any, device: Any) -> Any:
    """Return a nested structure with its tensors, and whatever else knows ``to``, on a device."""
    if device is None or isinstance(value, type):
        return value
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, Mapping):
        items = {key: moved(item, device) for key, item in value.items()}
        kind: Any = type(value)
        return items if kind is dict else kind(items)
    if isinstance(value, (list, tuple)):
        parts = [moved(item, device) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value):
        twin = copy.copy(value)
        for field in dataclasses.fields(value):
            # Not through replace(): it fails for fields that __init__ does not take.
            object.__setattr__(twin, field.name, moved(getattr(value, field.name), device))
        return twin
    return value


def device_of(model: nn.Module) -> torch.device | None:
    """Return where the model's first parameter or buffer is, None without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


@contextmanager
def evaluating(
    model: nn.Module,
    *,
    loader: object = None,
    device: Any = None,
    keep: Collection[nn.Module] = (),
) -> Iterator[None]:
    """Inside, the model is in evaluation mode, without gradients, on ``device``.

    Afterwards training flags, buffers, device and the random streams (also the loader's) are as
    before; the buffers of the modules in ``keep`` stay as they have become, unless it fails.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    kept: set[nn.Module] = set()
    with torch.no_grad(), same_random_streams(loader), on_device(model, device):
        try:
            for module, _ in flags:
                module.training = False
            yield
            kept = set(keep)
        finally:
            for module, name, buffer, saved in buffers:
                if module not in kept:
                    module._buffers[name] = buffer
                    if not torch.equal(buffer, saved):  # expanded buffers refuse to be written
                        buffer.copy_(saved)
            for module, training in flags:
                module.training = training


@contextmanager
def on_device(model: nn.Module, device: Any) -> Iterator[None]:
    """Move a model that lies on one device to another, and back afterwards."""
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if device is None or len(homes) != 1 or homes == {torch.empty(0, device=device).device}:
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(homes.pop())


@contextmanager
def same_random_streams(loader: object) -> Iterator[None]:
    """Put the random generators back afterwards, so that training is as without initialisation."""
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    # Only where CUDA is in use: asking would start it, on every GPU.
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # as torch declares it
    gpus = torch.cuda.get_rng_state_all() if in_use else []
    own = [(generator, generator.get_state()) for generator in _generators(loader)]
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        for generator, state in own:
            generator.set_state(state)


def _generators(loader: object) -> Iterator[torch.Generator]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    for part in (loader, getattr(loader, "sampler", None), batch_sampler, inner):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            yield generator


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing elsewhere; yields a function of how much is done.

    Within another bar none is shown: the outer one says more.
    """
    if not sys.stderr.isatty() or not is_main_process() or _SHOWN:
        yield lambda _done: None
        return
    _SHOWN.append(description)
    try:
        yield from _bar(description, total)
    finally:
        _SHOWN.pop()


_SHOWN: list[str] = []


def _bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)
