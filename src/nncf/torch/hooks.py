# SPDX-License-Identifier: Apache-2.0
"""The one mechanism: a TorchFunctionMode that ordinary forward hooks enter and leave.

A module's pre-hook enters the mode, or pushes the module's scope when the mode is already
active; its forward hook pops it. Inside, every call of a torch function passes through
``__torch_function__``, which knows the scope and counts the calls: that is the operation's
address. The Recorder (``capture.py``) writes down what it sees, the Interceptor runs the
CompressionOps that stand at the address. Nothing is patched and no module is replaced.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode


class _ActiveModes(threading.local):
    def __init__(self) -> None:
        self.modes: list[ScopedMode] = []


_ACTIVE = _ActiveModes()


class ScopedMode(TorchFunctionMode):
    """Knows which module is running and which call of a function this is.

    ``token`` identifies the model that the mode belongs to. Scopes are texts such as
    ``LeNet/Conv2d[conv1]``; counters run from the outermost entry to its end. ``gaps``
    holds a word for each ``no_nncf_trace`` ("closed") or ``forward_nncf_trace`` ("open") that
    the forward is in. (Lists: the compiler loses track of attributes that are set anew.)
    """

    def __init__(self, token: str) -> None:
        super().__init__()
        self.token = token
        self.scopes: list[str] = []
        self.counts: dict[str, int] = {}
        self.gaps: list[Literal["closed", "open"]] = []
        self.called: list[bool] = []
        self.entry: FrameType | None = None

    def enter_scope(self, scope: str) -> None:
        self.scopes.append(scope)

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function as if the model had called it."""
        return self.__torch_function__(func, (), args, kwargs)

    def next_key(self, name: str) -> str:
        """Return the address of this call of ``name`` and count it."""
        stem = self.scopes[-1] + "/" + name
        index = self.counts.get(stem, 0)
        self.counts[stem] = index + 1
        return stem + "_" + str(index)

    def rewind(self, counts: Mapping[str, int]) -> None:
        """Make the next calls count as repetitions (the time steps of a recurrent layer)."""
        self.counts = dict(counts)


class CallingMode(Protocol):
    """The part of a ScopedMode that runs functions as if the model had called them."""

    counts: dict[str, int]
    scopes: list[str]

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any: ...

    def rewind(self, counts: Mapping[str, int]) -> None: ...


class ModeSource(Protocol):
    """What the hooks refer to: it makes the mode that a forward runs in."""

    token: str

    def make_mode(self, module: nn.Module) -> ScopedMode: ...


class EnterScope:
    """Forward pre-hook: enter the mode, or push this module's scope.

    It refers to its source (the ``compression`` submodule), so that copying or pickling the
    model keeps hooks and CompressionOps together.
    """

    def __init__(self, scope: str, source: ModeSource) -> None:
        self.scope = scope
        self.source = source

    def __call__(self, module: nn.Module, args: Any) -> None:
        modes = _ACTIVE.modes
        if modes and "/" not in self.scope and not torch.compiler.is_dynamo_compiling():
            abandon_interrupted()
        if not modes or modes[-1].token != self.source.token:
            mode = self.source.make_mode(module)
            if not torch.compiler.is_dynamo_compiling():
                mode.entry = sys._getframe(1)
            mode.__enter__()
            modes.append(mode)
        modes[-1].enter_scope(self.scope)


class LeaveScope:
    """Forward hook that also runs after an exception: pop the scope, leave the mode at the end."""

    def __init__(self, scope: str, source: ModeSource) -> None:
        self.scope = scope
        self.source = source

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        modes = _ACTIVE.modes
        mode = modes[-1] if modes else None
        if mode is None or mode.token != self.source.token or mode.scopes[-1:] != [self.scope]:
            return  # another pre-hook failed before the scope was entered
        mode.scopes.pop()
        if not mode.scopes:
            modes.pop()
            mode.entry = None  # a frame keeps all its tensors
            mode.__exit__(None, None, None)


def resuming(
    make_mode: Callable[[], ScopedMode], mode: ScopedMode
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator: its function runs later, in a new mode, where ``mode`` is now."""
    scopes, counts, gaps = list(mode.scopes), dict(mode.counts), list(mode.gaps)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def resumed(*args: Any, **kwargs: Any) -> Any:
            again = make_mode()
            again.scopes, again.counts, again.gaps = list(scopes), dict(counts), list(gaps)
            with again:
                _ACTIVE.modes.append(again)
                try:
                    return function(*args, **kwargs)
                finally:
                    _ACTIVE.modes.remove(again)

        return resumed

    return decorate


def abandon(mode: ScopedMode) -> None:
    """Leave a mode that an interrupt (Ctrl-C) kept from being left; none above it stays active."""
    while mode in _ACTIVE.modes:
        last = _ACTIVE.modes.pop()
        last.scopes.clear()
        last.entry = None
        if _get_current_function_mode() is last:
            last.__exit__(None, None, None)


def abandon_interrupted() -> None:
    """Leave modes whose forward no longer runs.

    Ctrl-C in a notebook, and a failure under ``torch.export``, end a forward without its hooks.
    """
    running = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        running.add(frame)
        frame = frame.f_back
    for mode in list(_ACTIVE.modes):
        if mode.entry is not None and mode.entry not in running:
            abandon(mode)


@contextmanager
def leaving_all_modes() -> Iterator[None]:
    """Leave, at the end, every mode that was entered within and not left.

    A forward that fails under ``torch.export`` is not left by its hooks; the exporter then
    leaves our mode in place of its own, which stays.
    """
    before = torch._C._len_torch_function_stack()
    active = len(_ACTIVE.modes)
    try:
        yield
    finally:
        for mode in _ACTIVE.modes[active:]:
            abandon(mode)
        while torch._C._len_torch_function_stack() > before:
            _pop_mode()


def attach(module: nn.Module, scope: str, source: ModeSource) -> None:
    """Register both hooks on one module; the pre-hook runs first, the forward hook last.

    Scripted modules take no hooks: what they call belongs to their parent, unseen.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return
    module.register_forward_pre_hook(EnterScope(scope, source), prepend=True)
    module.register_forward_hook(LeaveScope(scope, source), always_call=True)


def detach(module: nn.Module, source: object) -> None:
    """Remove the hooks that refer to ``source`` from one module."""
    notes = (
        module._forward_hooks_always_called,
        module._forward_hooks_with_kwargs,
        module._forward_pre_hooks_with_kwargs,
    )
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        ours = [key for key, hook in hooks.items() if getattr(hook, "source", None) is source]
        for key in ours:
            del hooks[key]
            for note in notes:
                note.pop(key, None)


def active_mode() -> ScopedMode | None:
    """Return the mode that the current forward of this thread runs in, if any."""
    return _ACTIVE.modes[-1] if _ACTIVE.modes else None


def scope_names(model: nn.Module) -> dict[str, str]:
    """Return ``{module path: scope text}``; a shared module has one entry per path.

    ``{"": "LeNet", "conv1": "LeNet/Conv2d[conv1]"}``.
    """
    names: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not path:
            names[path] = type(module).__name__
            continue
        parent, _, attribute = path.rpartition(".")
        names[path] = f"{names[parent]}/{type(module).__name__}[{attribute}]"
    return names
