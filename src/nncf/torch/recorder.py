# SPDX-License-Identifier: Apache-2.0
"""The Recorder: the mode that writes down a Graph while a forward runs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nncf.graph.address import Address
from nncf.graph.graph import Buffer, DType, Edge, Graph, Operation, Parameter
from nncf.graph.kinds import KINDS, WEIGHTED, Kind
from nncf.torch import call_attributes, call_shapes, hooks, op_kinds
from nncf.torch.masks import Masks
from nncf.torch.parameter_moves import move
from nncf.torch.provenance import Lineage, Origin, Provenance
from nncf.torch.registration import registration_of
from nncf.torch.rewrites import SOURCES, rewrite_of, unreached_reason
from nncf.torch.sizes import Sizes
from nncf.torch.structure import tensors_in

UNSEEN = "nncf_unseen"
"""Name in addresses of what computed a tensor out of sight."""

_UNSEEN_REASON = (
    "computed where no function call can be seen: in scripted code, in a C++ extension, or through "
    "NumPy. Write it with torch functions to have it compressed"
)

_CUT_REASON = "returns a view that is changed in place; a compressed copy would not be"


class Recorder(hooks.ScopedMode):
    """Notes operations, the tensors between them and their parameters."""

    def __init__(self, model: nn.Module, sizes: Sizes) -> None:
        super().__init__(uuid.uuid4().hex)
        self.sizes = sizes
        self.graph = Graph()
        self.tensors = Provenance(model)
        self.masks = Masks()
        self.calls: dict[str, set[str]] = {}
        self.functions: dict[Callable[..., Any], str] = {}
        self.hidden: set[str] = set()
        self.inside: list[str] = []
        self.parameters = dict(model.named_parameters())
        self.modules = dict(model.named_modules())
        scopes = hooks.scope_names(model)
        self.layers = {scopes[path]: (path, module) for path, module in self.modules.items()}

    def enter_scope(self, scope: str) -> None:
        super().enter_scope(scope)
        self.calls.setdefault(scope, set())

    # the two ends of the graph -------------------------------------------------------------

    def add_input(self, tensor: torch.Tensor) -> None:
        """Make a tensor the model's next input."""
        self.tensors.keep(tensor, Origin(self._new_end("input")))
        self.masks.add_if_huge(tensor)

    def add_output(self, tensor: torch.Tensor) -> None:
        """Make a tensor the model's next output."""
        origin = self._origin(tensor)
        if origin is not None:
            end = self._new_end("output")
            self.tensors.read(end, [tensor])
            self.graph.add_edge(self._edge(origin, end, 0, tensor))

    def _new_end(self, kind: str, name: str | None = None) -> str:
        name = name or f"nncf_model_{kind}"
        index = self.counts.get(f"/{name}", 0)
        self.counts[f"/{name}"] = index + 1
        operation = Operation(Address((), name, index), KINDS[kind])
        self.graph.add_operation(operation)
        return operation.key

    # the tape ------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with self.tensors.unseen.looking_away():  # what runs from here on has been seen
            return self._see(func, args, kwargs or {})

    def _see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.scopes or op_kinds.passive(func):
            return func(*args, **kwargs)
        if self.gaps:
            return self._untraced(func, args, kwargs)
        name, _ = op_kinds.describe(func)
        if name == "__get__":
            return func(*args, **kwargs)
        key = self.next_key(name)
        if key in self.sizes.rules:
            args, kwargs = self.sizes.correct(key, args, kwargs)
        self.functions[func] = name
        if op_kinds.hidden_from_compilers(func):
            self.hidden.add(key)
        self.calls[self.scopes[-1]].add(name)
        if func in SOURCES:
            return self._note_source(key, name, func(*args, **kwargs))
        rewrite = rewrite_of(name, args, kwargs)
        if rewrite is not None:
            self.inside.append(name)
            try:
                return rewrite(self, *args, **kwargs)
            finally:
                self.inside.pop()
        return self._run_noting(key, func, args, kwargs)

    def _run_noting(
        self, key: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one operation; note it unless it computes with parameters and constants alone."""
        name, kind = op_kinds.describe(func)
        inputs = list(op_kinds.tensor_arguments(name, args, kwargs))
        versions = [_version(tensor) for tensor in inputs]
        output = func(*args, **kwargs)
        if name in op_kinds.CREATING or not inputs:
            return output
        origins = [self._origin(tensor) for tensor in inputs]
        kind, weights = self._weights(name, self._embeds(name, kind, args), inputs)
        if all(origin is None for origin in origins) and kind.name not in WEIGHTED:
            self._inherit(key, func, (args, kwargs), (inputs, output))
            return output
        for tensor, origin in zip(inputs, origins, strict=True):
            if origin is None and self.tensors.lineage(tensor) is None:
                self.masks.add_if_huge(tensor)
        shapes = call_shapes.shapes_of(func, kind, (args, kwargs), (inputs, output))
        if self.inside:
            shapes["inside"] = self.inside[0]
        self._note_call(key, name, (kind, weights, shapes), (inputs, origins), (args, kwargs))
        self.tensors.read(key, inputs)
        changed = [port for port, t in enumerate(inputs) if versions[port] != _version(t)]
        result = self._note_results(key, inputs, changed, output)
        made = [*tensors_in(result), *(inputs[port] for port in changed)]
        self.masks.note(kind, (args, kwargs), inputs, made)
        return result

    def _inherit(
        self,
        key: str,
        func: Callable[..., Any],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        tensors: tuple[list[torch.Tensor], Any],
    ) -> None:
        """Note what a call has made of parameters and constants alone."""
        inputs, output = tensors
        results = list(tensors_in(output))
        line = self.tensors.lineage(inputs[0])
        others = [self.tensors.lineage(tensor) for tensor in inputs[1:]]
        if line is not None and line.moved is not None and not any(others):
            name, kind = op_kinds.describe(func)
            moves = move(func, name, kind, (arguments, output), line.moved)
            if moves is not None:
                self.tensors.move(key, line, results, moves)
                return
        self.tensors.inherit(inputs, results, key)

    def _untraced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function unseen; in an open gap its results pass for its first known argument."""
        inputs = list(op_kinds.tensor_arguments("", args, kwargs))
        output = func(*args, **kwargs)
        known = [origin for tensor in inputs if (origin := self.tensors.origin(tensor))]
        self.graph.read_unseen.update((origin.source, origin.port) for origin in known)
        self.tensors.fix(inputs, "/".join([*self.scopes[-1:], op_kinds.describe(func)[0]]))
        if self.gaps[-1] == "open" and known:
            for tensor in tensors_in(output):
                if self.tensors.origin(tensor) is None:
                    # What ran may have changed the values: an op for the source's output must
                    # run where they are read.
                    self.tensors.keep(tensor, Origin(known[0].source, known[0].port, aliased=True))
        return output

    def _note_results(
        self, key: str, inputs: list[torch.Tensor], changed: list[int], output: Any
    ) -> Any:
        """Note what a call made, and what it changed in place; return what the model gets.

        Where that is one of the inputs, it gets a new object for it, to tell who uses what was
        returned: only there a CompressionOp at the operation's output has an effect.
        """
        given = {id(tensor) for tensor in inputs}
        for port in changed:
            self.tensors.changed(inputs[port], key, port)
        if isinstance(output, torch.Tensor) and id(output) in given:
            if isinstance(output, nn.Parameter) or output.is_sparse:
                return output
            if self.tensors.lineage(output) is not None:
                return output
            output = output.view_as(output)
        if not changed:
            self.tensors.returned(key, inputs, tensors_in(output))
        for port, tensor in enumerate(tensors_in(output)):
            if id(tensor) not in given:
                self.tensors.keep(tensor, Origin(key, port, aliased=key in self.hidden))
        return output

    def _note_source(self, key: str, name: str, output: torch.Tensor) -> torch.Tensor:
        """Note an operation without inputs: its past lies in earlier time steps."""
        if key not in self.graph:
            self.graph.add_operation(self._operation(key, name, KINDS["unknown"]))
        self.tensors.keep(output, Origin(key))
        return output

    def _origin(self, tensor: torch.Tensor) -> Origin | None:
        """Return the origin of a tensor, also when calls that nobody saw have made it."""
        found = self.tensors.origin(tensor)
        if found is not None or self.tensors.lineage(tensor) is not None:
            return found
        ancestors = self.tensors.ancestors(tensor)
        sources = [(t, origin) for t in ancestors if (origin := self.tensors.origin(t))]
        if not sources:
            found = self.tensors.guess(tensor)
            if found is not None:
                self.tensors.keep(tensor, found)
            elif ancestors:
                self.tensors.inherit(ancestors, [tensor], UNSEEN)
            return found
        key = self.next_key(UNSEEN) if self.scopes else self._new_end("unknown", UNSEEN)
        _, weights = self._weights(UNSEEN, KINDS["unknown"], ancestors)
        self.graph.add_operation(
            self._operation(key, UNSEEN, KINDS["unknown"], {}, weights, _UNSEEN_REASON)
        )
        for port, (ancestor, origin) in enumerate(sources):
            self.graph.add_edge(self._edge(origin, key, port, ancestor))
        self.tensors.keep(tensor, Origin(key))
        return Origin(key)

    def _note_call(
        self,
        key: str,
        name: str,
        meaning: tuple[Kind, tuple[Parameter, ...], dict[str, Any]],
        tensors: tuple[list[torch.Tensor], list[Origin | None]],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        kind, weights, shapes = meaning
        if key not in self.graph:
            attributes = call_attributes.attributes_of(kind, *arguments)
            refined = call_attributes.refine(kind, attributes)
            reason = unreached_reason(name, *arguments)
            reason = reason or _without_parameter(kind, weights, tensors)
            operation = self._operation(key, name, refined, attributes | shapes, weights, reason)
            self.graph.add_operation(replace(operation, buffers=self._buffers(tensors[0])))
        ports = {weight.port for weight in weights}
        for port, (tensor, origin) in enumerate(zip(*tensors, strict=True)):
            source = origin if origin is not None or port in ports else self._constant(tensor)
            if source is not None and source.source != key:  # not what an earlier time step made
                self.graph.add_edge(self._edge(source, key, port, tensor))

    def _buffers(self, inputs: list[torch.Tensor]) -> tuple[Buffer, ...]:
        lines = [(port, self.tensors.lineage(tensor)) for port, tensor in enumerate(inputs)]
        return tuple(
            Buffer(line.buffer, port, line.moved.axes)
            for port, line in lines
            if line and line.buffer and line.moved
        )

    def _constant(self, tensor: torch.Tensor) -> Origin | None:
        """Add a constant to the graph; None for parameters, buffers, scalars and integers."""
        if self.tensors.lineage(tensor) is not None:
            return None
        if tensor.dim() == 0 or not tensor.is_floating_point():
            return None
        origin = Origin(self._new_end("constant", "nncf_external"))
        self.tensors.keep(tensor, origin)
        return origin

    def _edge(self, origin: Origin, target: str, port: int, tensor: torch.Tensor) -> Edge:
        kind: DType = "float" if tensor.is_floating_point() else "integer"
        if tensor.dtype is torch.bool or tensor.is_complex() or tensor in self.masks:
            kind = "other"
        shape = tuple(tensor.shape)
        return Edge(origin.source, target, origin.port, port, shape, kind, origin.aliased)

    def _operation(
        self,
        key: str,
        name: str,
        kind: Kind,
        attributes: dict[str, Any] | None = None,
        parameters: tuple[Parameter, ...] = (),
        unreached: str | None = None,
    ) -> Operation:
        scope, _, call = key.rpartition("/")
        path, module = self.layers.get(scope, ("", None))
        return Operation(
            address=Address(
                tuple(scope.split("/")) if scope else (), name, int(call[len(name) + 1 :])
            ),
            kind=kind,
            layer=path,
            layer_class=type(module).__name__ if module is not None else "",
            attributes=attributes or {},
            parameters=parameters,
            ignored_algorithms=registration_of(module).ignored_algorithms,
            unreached=unreached,
        )

    def finish(self) -> None:
        """Mark the operations that a CompressionOp would cut off from what they are a view of."""
        for key in self.tensors.changes.cut:
            if key in self.graph and self.graph[key].unreached is None:
                self.graph.add_operation(replace(self.graph[key], unreached=_CUT_REASON))
        self.graph.fixed.update(self.tensors.fixed)
        self.tensors.forget()
        self.masks.forget()

    # parameters ----------------------------------------------------------------------------

    def _weights(
        self, name: str, kind: Kind, inputs: list[torch.Tensor]
    ) -> tuple[Kind, tuple[Parameter, ...]]:
        """Return the parameters among the inputs, and the kind of operation that they make it."""
        found = []
        for port, tensor in enumerate(inputs):
            line = self.tensors.lineage(tensor)
            if line is not None and line.parameter is not None:
                found.append((port, tensor, line))
        matrices = [port for port, tensor, _ in found if tensor.dim() > 1]
        kind = call_attributes.refine_by_weights(name, kind, matrices)
        if kind.name in WEIGHTED:
            found.sort(key=lambda entry: entry[0] != 1)  # the usual port of a weight comes first
        if len(found) < len(inputs) or kind.name in WEIGHTED:
            self.tensors.used.update(str(line.parameter) for _, _, line in found)
        return kind, tuple(self._parameter(name, kind, *entry) for entry in found)

    def _embeds(self, name: str, kind: Kind, args: tuple[Any, ...]) -> Kind:
        """Return ``embedding`` for ``table[indices]`` where the table is a parameter."""
        if name != "__getitem__" or not isinstance(args[1], torch.Tensor) or args[0].dim() != 2:
            return kind
        line = self.tensors.lineage(args[0])
        by_number = args[1].dtype in (torch.int64, torch.int32)
        return KINDS["embedding"] if by_number and line and line.parameter else kind

    def _parameter(
        self, name: str, kind: Kind, port: int, tensor: torch.Tensor, line: Lineage
    ) -> Parameter:
        assert line.parameter is not None
        path, _, attribute = line.parameter.rpartition(".")
        registration = registration_of(self.modules.get(path))
        axis = registration.channel_axis
        if axis is None or not -tensor.dim() <= axis < tensor.dim():
            axis = call_attributes.channel_axis(name, kind, tensor.dim(), port)
        return Parameter(
            name=line.parameter,
            port=port,
            shape=tuple(tensor.shape),
            trainable=self.parameters[line.parameter].requires_grad,
            direct=line.direct,
            channel_axis=None if axis is None else axis % tensor.dim(),
            registered=registration.compresses(attribute),
            axes=line.moved.axes if line.moved and not line.direct else None,
        )


def _version(tensor: torch.Tensor) -> int:
    """Return the number of changes in place; tensors of inference mode do not count them."""
    return 0 if tensor.is_inference() else tensor._version


def _without_parameter(
    kind: Kind,
    weights: tuple[Parameter, ...],
    tensors: tuple[list[torch.Tensor], list[Origin | None]],
) -> str | None:
    """Return why a convolution or its like has no weight that could be compressed."""
    if kind.name not in WEIGHTED or any(len(weight.shape) > 1 for weight in weights):
        return None
    pairs = zip(*tensors, strict=True)
    if any(origin is None and t.dim() > 1 and t.is_floating_point() for t, origin in pairs):
        return "its weight is a buffer or a plain tensor, not a parameter"
    return None
