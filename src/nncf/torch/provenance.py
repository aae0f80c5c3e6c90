# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of one forward come from.

Tensors are recognised by identity and kept alive until the capture ends, so that no identity is
used twice. Tensors that share memory are known to each other: a change in place through one of
them is a change of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nncf.torch.parameter_moves import Moved, unmoved


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: output ``port`` of operation ``source``.

    ``aliased``: reached through an object that was changed behind its back, or that is not what
    the operation returned.
    """

    source: str
    port: int = 0
    aliased: bool = False


@dataclass(frozen=True)
class Lineage:
    """A tensor that is a parameter or a buffer, or is computed from such alone.

    ``parameter`` names the largest parameter in it, None when there is none; ``direct`` means
    that the tensor is that parameter itself. ``buffer`` names the buffer that it is. ``moved``
    tells what it shows of one of them, None when it is computed from it in another way.
    """

    parameter: str | None
    direct: bool = True
    buffer: str | None = None
    moved: Moved | None = None


@dataclass(frozen=True)
class Changes:
    """What changes in place mean for CompressionOps, which put new tensors in the place of others.

    Pairs are operation and input port. ``written``: the operation writes into that input.
    ``overwritten``: somebody writes into it afterwards. ``cut``: operations between a tensor that is read and a view of it
    into which somebody has written; what is written into a copy would not reach the tensor.
    """

    written: set[tuple[str, int]] = field(default_factory=set)
    overwritten: set[tuple[str, int]] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)


class Provenance:
    """Origins and lineages of all tensors seen so far."""

    def __init__(self, model: nn.Module) -> None:
        self.used: set[str] = set()
        self.changes = Changes()
        self._origins: dict[int, Origin] = {}
        self._lineages: dict[int, Lineage] = {}
        self._kept: list[torch.Tensor] = []
        self._memory: dict[int, list[torch.Tensor]] = {}
        self._readers: dict[int, list[tuple[str, int]]] = {}
        self._views: dict[int, set[str]] = {}
        self._cut_if_read: dict[int, frozenset[str]] = {}
        self.unseen = UnseenCalls()
        self.fixed: dict[tuple[str, int], str] = {}
        self._ranks: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            self._know(name, parameter, Lineage(name, moved=unmoved(tuple(parameter.shape))))
        for name, buffer in model.named_buffers():
            whole = unmoved(tuple(buffer.shape))
            self._know(name, buffer, Lineage(None, buffer=name, moved=whole))

    def _know(self, name: str, tensor: torch.Tensor, line: Lineage) -> None:
        self._lineages[id(tensor)] = line
        self._ranks[name] = tensor.dim()

    def origin(self, tensor: torch.Tensor) -> Origin | None:
        return self._origins.get(id(tensor))

    def lineage(self, tensor: torch.Tensor) -> Lineage | None:
        """Return the lineage; None for tensors that an operation made, and for unknown ones."""
        return None if id(tensor) in self._origins else self._lineages.get(id(tensor))

    def keep(self, tensor: torch.Tensor, origin: Origin) -> None:
        """Note, or correct, the origin of a tensor."""
        if id(tensor) not in self._origins:
            self._kept.append(tensor)
            place = _place(tensor)
            if place:
                self._memory.setdefault(place, []).append(tensor)
        self._origins[id(tensor)] = origin

    def move(
        self, call: str, source: Lineage, outputs: Iterable[torch.Tensor], moves: Iterable[Moved]
    ) -> None:
        """Note tensors that only show a parameter or buffer, moved."""
        name = source.parameter or source.buffer
        if source.parameter:
            self.used.add(source.parameter)
        for tensor, moved in zip(outputs, moves, strict=True):
            self.fixed.update({(str(name), axis): call for axis in moved.fixed})
            if id(tensor) not in self._lineages:
                self._lineages[id(tensor)] = replace(source, direct=False, moved=moved)
                self._kept.append(tensor)

    def fix(self, inputs: Iterable[torch.Tensor], call: str) -> None:
        """Note that code takes parameters and buffers as they are where no operation is noted."""
        for line in (self._lineages.get(id(tensor)) for tensor in inputs):
            name = line and (line.parameter or line.buffer)
            if name:
                self.fixed.update({(name, axis): call for axis in range(self._ranks[name])})

    def inherit(
        self, inputs: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor], call: str
    ) -> None:
        """Note tensors computed without any from an operation, by the call of that address.

        They descend from the largest parameter among the inputs, unless a floating-point input
        is neither parameter nor buffer: then they are plain constants.
        """
        inputs, outputs = list(inputs), list(outputs)
        if outputs:
            self.fix(inputs, call)
        lines = [(t.numel(), self._lineages.get(id(t)), t.is_floating_point()) for t in inputs]
        named = [(size, line.parameter) for size, line, _ in lines if line and line.parameter]
        self.used.update(name for _, name in named)
        if any(line is None and floating for _, line, floating in lines):
            return
        parameter = max(named)[1] if named else None
        for tensor in outputs:
            if id(tensor) not in self._lineages:
                self._lineages[id(tensor)] = Lineage(parameter, direct=False)
                self._kept.append(tensor)

    def read(self, key: str, inputs: Iterable[torch.Tensor]) -> None:
        """Note that an operation reads tensors, at ports in that order."""
        for port, tensor in enumerate(inputs):
            self._readers.setdefault(_place(tensor), []).append((key, port))
            self.changes.cut.update(self._cut_if_read.pop(id(tensor), ()))

    def returned(self, key: str, inputs: Iterable[torch.Tensor], outputs: Iterable[Any]) -> None:
        """Note what an operation has returned, to tell views from new tensors."""
        places = {_place(tensor) for tensor in inputs}
        for tensor in outputs:
            if _place(tensor) in places:
                self._views.setdefault(_place(tensor), set()).add(key)

    def changed(self, tensor: torch.Tensor, source: str, port: int) -> None:
        """Note that ``source`` changed its input in place, and so all that show its memory."""
        place = _place(tensor)
        if place:
            self.changes.written.add((source, port))
            self.changes.overwritten.update(self._readers.pop(place, ()))
        for other in self._memory.get(place, ()):
            if other is not tensor and _overlap(tensor, other):
                self._cut_if_read[id(other)] = frozenset(self._views.get(place, ()))
                self._origins[id(other)] = Origin(source, aliased=True)
        self.keep(tensor, Origin(source, aliased=True))

    def guess(self, tensor: torch.Tensor) -> Origin | None:
        """Return the origin of another tensor in the same memory, for one never seen."""
        for other in reversed(self._memory.get(_place(tensor), ())):
            origin = self._origins[id(other)]
            return Origin(origin.source, origin.port, aliased=True)
        return None

    def ancestors(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the known tensors from which calls that nobody saw have made this one."""
        found: dict[int, torch.Tensor] = {}
        waiting, seen = list(self.unseen.inputs_of(tensor)), {id(tensor)}
        while waiting:
            other = waiting.pop(0)
            if id(other) in seen:
                continue
            seen.add(id(other))
            if id(other) in self._origins or id(other) in self._lineages:
                found[id(other)] = other
            else:
                waiting.extend(self.unseen.inputs_of(other))
        return list(found.values())

    def forget(self) -> None:
        """Let go of all tensors."""
        self._kept.clear()
        self._memory.clear()
        self._readers.clear()
        self._views.clear()
        self._cut_if_read.clear()
        self.unseen.made.clear()


class UnseenCalls(TorchDispatchMode):
    """Notes what ATen computes outside the calls that a TorchFunctionMode sees.

    Scripted functions and C++ extensions are not seen as functions, but what they compute
    passes here. ``watching`` is False while a function that is seen runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watching = True
        self.made: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunction():
            output = func(*args, **(kwargs or {}))
        if self.watching:
            inputs = list(_tensors((args, kwargs)))
            for tensor in _tensors(output):
                if all(tensor is not given for given in inputs):
                    # By memory, too: autograd may hand a view on as another object.
                    for key in (id(tensor), -_place(tensor)):
                        self.made[key] = (tensor, inputs)
        return output

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Note nothing within."""
        before = self.watching
        self.watching = False
        try:
            yield
        finally:
            self.watching = before

    def inputs_of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the inputs of the unseen call that made the tensor, or one in its memory."""
        place = _place(tensor)
        found = self.made.get(id(tensor)) or (self.made.get(-place) if place else None)
        return found[1] if found else []


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _place(tensor: torch.Tensor) -> int:
    """Return the address of the tensor's memory, 0 where it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, nested and other layouts
        return 0


def _overlap(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors in one memory share elements.

    Certain when one of them fills the memory or both are laid out alike. Two different parts
    are taken for disjoint, as those of ``chunk`` are.
    """
    size = first.untyped_storage().nbytes()
    if any(t.numel() * t.element_size() >= size for t in (first, second)):
        return True
    layouts = [(t.storage_offset(), t.shape, t.stride()) for t in (first, second)]
    return layouts[0] == layouts[1]
