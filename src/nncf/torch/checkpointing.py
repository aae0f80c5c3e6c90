# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing: what is computed again in the backward pass is compressed again.

A module that is recomputed enters its scope by its own hooks. A function that is recomputed
(``checkpoint(inner, x)`` within a forward) has none, and the second call of a shared module
would count as the first. So the first call that an Interceptor sees within a checkpoint leaves
a note there: where it was. Recomputation starts from that note.

PyTorch offers no public place for such a note, so it is left where both kinds of checkpoint
keep their function. Where that is not found, nothing happens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import CheckpointFunction, checkpoint

_REENTRANT = CheckpointFunction.forward.__code__
_FILE = _REENTRANT.co_filename
_NAME = checkpoint.__name__
_MARK = "resumed_by_nncf"


class _Followed(Protocol):
    """What this file needs to know of an Interceptor."""

    graded: bool
    seen_hooks: Any

    def snapshot(self) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...


def follow(mode: _Followed) -> None:
    """Leave a note in the checkpoints that the forward has come into, if it has.

    Call it before the mode's state changes: when a module is entered, when a call is counted.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    packing = None if hooks is None else hooks[0]
    entered = packing is not None and packing is not mode.seen_hooks
    mode.seen_hooks = packing
    if entered or (mode.graded and not torch.is_grad_enabled()):
        _note_all(mode, sys._getframe(1))


def _note_all(mode: _Followed, frame: FrameType | None) -> None:
    """Note every checkpoint on the stack, from the innermost to one that has its note."""
    resumed = None
    while frame is not None:
        holder, attribute = _holder(frame)
        function = getattr(holder, attribute, None)
        if function is not None:
            if hasattr(function, _MARK):
                return
            resumed = resumed or mode.snapshot()
            again = resumed(function)
            setattr(again, _MARK, True)
            setattr(holder, attribute, again)
        frame = frame.f_back


def _holder(frame: FrameType) -> tuple[Any, str]:
    """Return the object and the attribute in which a running checkpoint keeps its function.

    The reentrant kind runs it from its own forward; the other kind prepares in a generator.
    """
    if frame.f_code is _REENTRANT:
        return frame.f_locals["ctx"], "run_function"
    if frame.f_code.co_name == _NAME and frame.f_code.co_filename == _FILE:
        generator = frame.f_locals.get("gen")
        inner = getattr(generator, "gi_frame", None)
        if inner is not None:
            return inner.f_locals.get("new_frame"), "recompute_fn"
    return None, ""
