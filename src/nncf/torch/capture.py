# SPDX-License-Identifier: Apache-2.0
"""Capture: run the model once and write down its Graph."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nncf.graph.address import Address
from nncf.graph.graph import DType, Edge, Graph, Operation, Parameter
from nncf.graph.kinds import KINDS, WEIGHTED, Kind
from nncf.torch import hooks, op_kinds
from nncf.torch.registration import registration_of
from nncf.torch.rewrites import REWRITES, SOURCES, unreached_reason
from nncf.torch.structure import tensors_in


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: output ``port`` of ``source``."""

    source: str
    port: int = 0
    aliased: bool = False


@dataclass(frozen=True)
class _Lineage:
    """A tensor that is a parameter or buffer, or is computed from such alone."""

    parameter: str | None
    direct: bool = True


class _RecorderSource:
    """What the temporary hooks of a capture refer to: they all share one Recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.token = recorder.token

    def make_mode(self, module: nn.Module) -> hooks.ScopedMode:
        return self.recorder


class Recorder(hooks.ScopedMode):
    """The tape: notes operations, their tensors and parameters while a forward runs.

    Tensors are recognised by identity; the tape keeps them alive until the capture ends.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(uuid.uuid4().hex)
        self.graph = Graph()
        self.origins: dict[int, _Origin] = {}
        self.lineage: dict[int, _Lineage] = {}
        self.kept: list[Any] = []
        self.calls: dict[str, set[str]] = {}
        self.functions: dict[Callable[..., Any], str] = {}
        self.used: set[str] = set()
        self.parameters = dict(model.named_parameters())
        self.layers: dict[str, tuple[str, nn.Module]] = {}
        self.modules = dict(model.named_modules())
        scopes = hooks.scope_names(model)
        for path, module in self.modules.items():
            self.layers[scopes[path]] = (path, module)
        for name, tensor in self.parameters.items():
            self.lineage[id(tensor)] = _Lineage(name)
        for _, buffer in model.named_buffers():
            self.lineage[id(buffer)] = _Lineage(None)

    def enter_scope(self, scope: str) -> None:
        super().enter_scope(scope)
        self.calls.setdefault(scope, set())

    # the two ends of the graph -------------------------------------------------------------

    def add_input(self, tensor: torch.Tensor) -> None:
        """Make a tensor the model's next input."""
        self._add_end("input", tensor)

    def add_output(self, tensor: torch.Tensor) -> None:
        """Make a tensor the model's next output."""
        origin = self.origins.get(id(tensor))
        if origin is None:
            return
        end = self._new_end("output")
        self.graph.add_edge(_edge(origin, end, 0, tensor))

    def _new_end(self, kind: str, name: str | None = None) -> str:
        name = name or f"nncf_model_{kind}"
        index = self.counts.get(f"/{name}", 0)
        self.counts[f"/{name}"] = index + 1
        operation = Operation(Address((), name, index), KINDS[kind])
        self.graph.add_operation(operation)
        return operation.key

    def _add_end(self, kind: str, tensor: torch.Tensor, name: str | None = None) -> _Origin:
        origin = _Origin(self._new_end(kind, name))
        self._keep(tensor, origin)
        return origin

    # the tape ------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.scopes or op_kinds.passive(func):
            return func(*args, **kwargs)
        if self.tracing != "on":
            return self._untraced(func, args, kwargs)
        name, kind = op_kinds.describe(func)
        if name == "__get__":
            return func(*args, **kwargs)
        key = self.next_key(name)
        self.functions[func] = name
        self.calls[self.scopes[-1]].add(name)
        if func in SOURCES:
            return self._note_source(key, name, func(*args))
        if name in REWRITES and unreached_reason(name, args, kwargs) is None:
            return REWRITES[name](self, *args, **kwargs)
        inputs = list(op_kinds.tensor_arguments(name, args, kwargs))
        before = {id(tensor) for tensor in inputs}
        output = func(*args, **kwargs)
        if name == "__setitem__" and inputs:
            self._note_call(key, name, kind, inputs, args, kwargs)
            self._keep(inputs[0], _Origin(key))
            return output
        return self._note(key, name, kind, inputs, before, output, args, kwargs)

    def _untraced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function unseen; with "forward" its results pass for its first known argument."""
        inputs = list(op_kinds.tensor_arguments("", args, kwargs))
        output = func(*args, **kwargs)
        known = [self.origins[id(tensor)] for tensor in inputs if id(tensor) in self.origins]
        if self.tracing == "forward" and known:
            for tensor in tensors_in(output):
                if id(tensor) not in self.origins:
                    # What ran may have changed the values: an op for the source's output must
                    # run where they are read.
                    self._keep(tensor, _Origin(known[0].source, known[0].port, aliased=True))
        return output

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function as if the model had called it (used by rewrites)."""
        return self.__torch_function__(func, (), args, kwargs)

    def _note(self, key, name, kind, inputs, before, output, args, kwargs):  # type: ignore[no-untyped-def]  # private, called once
        outputs = list(tensors_in(output))
        if not outputs or not inputs:
            return output
        if all(id(t) not in self.origins for t in inputs) and kind.name not in WEIGHTED:
            self._inherit(inputs, outputs)
            return output
        self._note_call(key, name, kind, inputs, args, kwargs)
        if len(outputs) == 1 and output is outputs[0] and id(output) in before:
            return self._in_place(key, output)
        for port, tensor in enumerate(outputs):
            if id(tensor) not in before:
                self._keep(tensor, _Origin(key, port))
        return output

    def _note_source(self, key: str, name: str, output: torch.Tensor) -> torch.Tensor:
        """Note an operation without inputs: its past lies in earlier time steps."""
        address = Address(tuple(self.scopes[-1].split("/")), name, int(key.rpartition("_")[2]))
        if key not in self.graph:
            path, module = self.layers.get(self.scopes[-1], ("", None))
            self.graph.add_operation(
                Operation(address, KINDS["unknown"], path, type(module).__name__)
            )
        self._keep(output, _Origin(key))
        return output

    def _inherit(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Outputs of a computation on parameters alone descend from the largest of them."""
        found = [(t.numel(), self.lineage.get(id(t))) for t in inputs]
        if any(line is None for _, line in found):
            return
        names = [(size, line.parameter) for size, line in found if line and line.parameter]
        parameter = max(names)[1] if names else None
        for tensor in outputs:
            if id(tensor) not in self.lineage:
                self.lineage[id(tensor)] = _Lineage(parameter, direct=False)
                self.kept.append(tensor)

    def _in_place(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a new object for the changed tensor, to see who uses the returned one.

        A reader of the old object would miss a CompressionOp at the operation's output.
        """
        self._keep(tensor, _Origin(key, aliased=True))
        if isinstance(tensor, nn.Parameter) or tensor.is_sparse or id(tensor) in self.lineage:
            return tensor
        alias = tensor.view_as(tensor)
        self._keep(alias, _Origin(key))
        return alias

    def _keep(self, tensor: torch.Tensor, origin: _Origin) -> None:
        self.origins[id(tensor)] = origin
        self.kept.append(tensor)

    def _note_call(
        self, key: str, name: str, kind: Kind, inputs: list[torch.Tensor], args: Any, kwargs: Any
    ) -> None:
        scope = self.scopes[-1]
        path, module = self.layers.get(scope, ("", None))
        attributes = op_kinds.attributes_of(name, kind, args, kwargs)
        kind, parameters = self._parameters(name, op_kinds.refine(kind, attributes), inputs)
        if key not in self.graph:
            operation = Operation(
                address=Address(tuple(scope.split("/")), name, int(key.rpartition("_")[2])),
                kind=kind,
                layer=path,
                layer_class=type(module).__name__ if module is not None else "",
                attributes=attributes,
                parameters=parameters,
                ignored_algorithms=registration_of(module).ignored_algorithms,
                unreached=unreached_reason(name, args, kwargs),
            )
            self.graph.add_operation(operation)
        weights = {parameter.port for parameter in parameters}
        for port, tensor in enumerate(inputs):
            origin = self.origins.get(id(tensor))
            if origin is None and id(tensor) not in self.lineage and port not in weights:
                if tensor.dim() == 0 or not tensor.is_floating_point():
                    continue
                origin = self._add_end("constant", tensor, "nncf_external")
            if origin is not None and not _repeats(origin.source, key, self.graph):
                self.graph.add_edge(_edge(origin, key, port, tensor))

    def _parameters(
        self, name: str, kind: Kind, inputs: list[torch.Tensor]
    ) -> tuple[Kind, tuple[Parameter, ...]]:
        found = []
        for port, tensor in enumerate(inputs):
            line = self.lineage.get(id(tensor))
            if line is None or line.parameter is None or id(tensor) in self.origins:
                continue
            self.used.add(line.parameter)
            if kind.name == "matmul" and port == len(inputs) - 1 and tensor.dim() == 2:
                kind = KINDS["linear"]
            found.append((port, tensor, line))
        return kind, tuple(self._parameter(name, kind, *entry) for entry in found)

    def _parameter(
        self, name: str, kind: Kind, port: int, tensor: torch.Tensor, line: _Lineage
    ) -> Parameter:
        assert line.parameter is not None
        path, _, attribute = line.parameter.rpartition(".")
        registration = registration_of(self.modules.get(path))
        axis = registration.channel_axis
        if axis is None or not -tensor.dim() <= axis < tensor.dim():
            axis = op_kinds.channel_axis(kind, name, tensor.dim())
        return Parameter(
            name=line.parameter,
            port=port,
            shape=tuple(tensor.shape),
            trainable=self.parameters[line.parameter].requires_grad,
            direct=line.direct,
            channel_axis=None if axis is None else axis % tensor.dim(),
            registered=registration.compresses(attribute),
        )


def _repeats(source: str, target: str, graph: Graph) -> bool:
    """Tell whether an edge would close a cycle (only repeated time steps could)."""
    return source == target


def _edge(origin: _Origin, target: str, port: int, tensor: torch.Tensor) -> Edge:
    kind: DType = "float" if tensor.is_floating_point() else "integer"
    if tensor.dtype is torch.bool or tensor.is_complex():
        kind = "other"
    shape = tuple(tensor.shape)
    return Edge(origin.source, target, origin.port, port, shape, kind, origin.aliased)


@contextmanager
def _recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    source = _RecorderSource(recorder)
    scopes = hooks.scope_names(model)
    modules = list(model.named_modules())
    for path, module in modules:
        hooks.attach(module, scopes[path], source)
    try:
        yield
    finally:
        for _, module in modules:
            hooks.detach(module, source)
        recorder.kept.clear()


_CURRENT: list[Recorder] = []


def current_recorder() -> Recorder | None:
    """Return the Recorder of the capture under way, for the markers of user code."""
    return _CURRENT[-1] if _CURRENT else None


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients; modes, buffers and RNG as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
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
    in each scope (every scope that was entered is there), ``functions`` every function seen.
    """

    graph: Graph
    unused: tuple[str, ...] = ()
    calls: Mapping[str, set[str]] = field(default_factory=dict)
    functions: Mapping[Callable[..., Any], str] = field(default_factory=dict)


def capture(
    model: nn.Module,
    forward: Callable[[nn.Module], Any],
    *,
    inputs: tuple[Any, ...] = (),
    mark_outputs: Callable[[Any], Any] | None = None,
) -> Capture:
    """Return the Graph of one ``forward(model)``, run in evaluation mode without gradients.

    ``inputs`` are nested structures whose tensors become the model's inputs, in order; code
    inside ``forward`` may add more with ``nncf_model_input``. Every tensor that ``forward``
    returns becomes an output, or those that ``mark_outputs(result)`` marks.
    """
    recorder = Recorder(model)
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
    unused = [name for name in recorder.parameters if name not in recorder.used]
    return Capture(recorder.graph, tuple(unused), recorder.calls, recorder.functions)

