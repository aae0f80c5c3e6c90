# SPDX-License-Identifier: Apache-2.0
"""Capture: run the model once and write down its Graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nncf.graph.graph import Graph
from nncf.torch import hooks
from nncf.torch.provenance import Changes
from nncf.torch.recorder import Recorder
from nncf.torch.sizes import Sizes
from nncf.torch.structure import tensors_in


class _RecorderSource:
    """What the temporary hooks of a capture refer to: they all share one Recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.token = recorder.token

    def make_mode(self, module: nn.Module) -> hooks.ScopedMode:
        return self.recorder


@contextmanager
def _recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    source = _RecorderSource(recorder)
    scopes = hooks.scope_names(model)
    modules = list(model.named_modules())
    for path, module in modules:
        hooks.attach(module, scopes[path], source)
    try:
        with recorder.tensors.unseen:
            yield
    finally:
        for _, module in modules:
            hooks.detach(module, source)
        hooks.abandon(recorder)
        recorder.finish()


_CURRENT: list[Recorder] = []


def current_recorder() -> Recorder | None:
    """Return the Recorder of the capture under way, for the markers of user code."""
    return _CURRENT[-1] if _CURRENT else None


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients; modes, buffers and RNG as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices, key=str)):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and buffers[name].shape == buffer.shape:
                    buffer.copy_(buffers[name])


@dataclass(frozen=True)
class Capture:
    """A Graph, and what else the forward showed.

    ``unused`` names parameters that the forward did not use, ``calls`` the functions that ran
    in each scope (every scope that was entered is there), ``functions`` every function seen,
    ``hidden`` the operations whose calls ``torch.compile`` does not show, ``changes`` what is
    changed in place, ``sizes`` which arguments were corrected.
    """

    graph: Graph
    unused: tuple[str, ...] = ()
    calls: Mapping[str, set[str]] = field(default_factory=dict)
    functions: Mapping[Callable[..., Any], str] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    changes: Changes = field(default_factory=Changes)
    sizes: Sizes = field(default_factory=Sizes)


def capture(
    model: nn.Module,
    forward: Callable[[nn.Module], Any],
    *,
    inputs: tuple[Any, ...] = (),
    mark_outputs: Callable[[Any], Any] | None = None,
    sizes: Sizes | None = None,
) -> Capture:
    """Return the Graph of one ``forward(model)``, run in evaluation mode without gradients.

    ``inputs`` are nested structures whose tensors become the model's inputs, in order; code
    inside ``forward`` may add more with ``nncf_model_input``. Every tensor that ``forward``
    returns becomes an output, or those that ``mark_outputs(result)`` marks. ``sizes`` corrects
    the arguments of a model that has lost channels.
    """
    recorder = Recorder(model, sizes or Sizes())
    for tensor in tensors_in(inputs):
        recorder.add_input(tensor)
    _CURRENT.append(recorder)
    try:
        with _evaluation(model), _recording(model, recorder):
            result = forward(model)
            if mark_outputs is not None:
                mark_outputs(result)
            if not any(recorder.graph.operations("output")):
                for tensor in tensors_in(result):
                    recorder.add_output(tensor)
    finally:
        _CURRENT.remove(recorder)
    unused = [name for name in recorder.parameters if name not in recorder.tensors.used]
    return Capture(
        recorder.graph,
        unused=tuple(unused),
        calls=recorder.calls,
        functions=recorder.functions,
        hidden=frozenset(recorder.hidden),
        changes=recorder.tensors.changes,
        sizes=recorder.sizes,
    )
