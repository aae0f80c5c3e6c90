# SPDX-License-Identifier: Apache-2.0
"""What a model's author may say about a forward: own operations, its ends, and gaps.

None of these does anything while no compressed model runs and none is being captured.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import handle_torch_function

from nncf.torch import capture, hooks
from nncf.torch.op_kinds import OPERATOR_NAME

P = ParamSpec("P")
R = TypeVar("R")


def register_operator(name: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that makes a function one operation, named ``name`` or after itself.

    Nothing inside it is captured or compressed. With the name of a known operation (``relu``)
    it counts as one of that kind.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def operation(*args: P.args, **kwargs: P.kwargs) -> R:
            mode = hooks.active_mode()
            if mode is None or mode.gaps:
                return function(*args, **kwargs)
            if not mode.called:
                mode.called.append(True)
                # The public way to hand a call to the modes; they are off while theirs runs.
                return handle_torch_function(operation, (), *args, **kwargs)  # type: ignore[no-any-return]  # what operation returns
            mode.called.pop()  # it is the mode that calls, between its CompressionOps
            with no_nncf_trace():
                return function(*args, **kwargs)

        setattr(operation, OPERATOR_NAME, name or function.__name__)
        return operation

    return register


def nncf_model_input(tensor: torch.Tensor) -> torch.Tensor:
    """Mark a tensor as the model's next input, in ``wrap_inputs_fn`` or ``dummy_forward_fn``."""
    recorder = capture.current_recorder()
    if recorder is not None:
        recorder.add_input(tensor)
    return tensor


def nncf_model_output(tensor: torch.Tensor) -> torch.Tensor:
    """Mark a tensor as the model's next output, in ``wrap_outputs_fn`` or ``dummy_forward_fn``."""
    recorder = capture.current_recorder()
    if recorder is not None:
        recorder.add_output(tensor)
    return tensor


@contextmanager
def no_nncf_trace() -> Iterator[None]:
    """Context or decorator: operations inside are not captured, not compressed, not counted."""
    mode = hooks.active_mode()
    if mode is None:
        yield
        return
    mode.gaps.append("closed")
    try:
        yield
    finally:
        mode.gaps.pop()


@contextmanager
def forward_nncf_trace() -> Iterator[None]:
    """Like ``no_nncf_trace``, but a result counts as the tensor that it was made from.

    What reads the result is connected to what made the first tensor among the arguments, as if
    the operations inside were not there.
    """
    mode = hooks.active_mode()
    if mode is None:
        yield
        return
    mode.gaps.append("open")
    try:
        yield
    finally:
        mode.gaps.pop()


def disable_tracing(method: Callable[P, R]) -> Callable[P, R]:
    """Run a method of a model, from now on, as if within ``no_nncf_trace``.

    A decorator in a class, or a statement about a class that exists already:
    ``disable_tracing(Detector.postprocess)``; a method of an object stands for its class.
    """
    function: Any = getattr(method, "__func__", method)

    @functools.wraps(function)
    def untraced(*args: Any, **kwargs: Any) -> Any:
        with no_nncf_trace():
            return function(*args, **kwargs)

    owner = _owner(method, function)
    if owner is not None:
        setattr(owner, function.__name__, untraced)
    return untraced


def _owner(method: Any, function: Any) -> type | None:
    """Return the class that holds the function, None while its body is still being read."""
    bound_to = getattr(method, "__self__", None)
    if bound_to is not None:
        classes: Iterable[Any] = type(bound_to).__mro__
    else:
        found: Any = sys.modules.get(function.__module__)
        for part in function.__qualname__.split(".")[:-1]:
            found = getattr(found, part, None)
        classes = [found]
    for cls in classes:
        if isinstance(cls, type) and vars(cls).get(function.__name__) is function:
            return cls
    return None
