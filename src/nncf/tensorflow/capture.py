# SPDX-License-Identifier: Apache-2.0
"""Capture: run the model once on symbolic tensors and write down its Graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import tree

from nncf.graph.address import Address
from nncf.graph.graph import Buffer, DType, Edge, Graph, Operation, Parameter
from nncf.graph.kinds import KINDS
from nncf.tensorflow.call_attributes import attributes_of, shape_of
from nncf.tensorflow.call_shapes import Shape, channel_axis
from nncf.tensorflow.op_kinds import Step, Use, is_own_code, steps_of, uses_of, weight_of
from nncf.tensorflow.tracing import Call, Trace, trace
from nncf.tensorflow.vectors import statistics_of, vectors_of


@dataclass(frozen=True)
class WeightPlace:
    """Where a weight is: the layer that holds it, and how that layer uses it."""

    layer: Any
    use: Use

    @property
    def variable(self) -> Any:
        return weight_of(self.layer, self.use.attribute)


@dataclass(frozen=True)
class Hidden:
    """A layer inside of a call that was not followed, and the names that lead to it."""

    path: tuple[str, ...]
    layer: Any


@dataclass
class CallPlaces:
    """The operations of one call: the keys of its steps, and of layers hidden inside it.

    ``hidden`` are layers inside of a call that was not followed, by the key of their operation;
    ``made`` is what the compressed model calls.
    """

    call: Call
    steps: tuple[str, ...]
    hidden: dict[str, Hidden] = field(default_factory=dict)
    made: Any = None


@dataclass(frozen=True)
class Capture:
    """A Graph, the trace it was made from, and where its weights are.

    ``calls`` are in the order of the trace; ``weights`` has, by operation and port, the place of
    a weight; ``variables`` the model's variables by the name that Parameters have. ``unused``
    names layers with weights that the trace did not call.
    """

    graph: Graph
    trace: Trace
    calls: list[CallPlaces]
    weights: Mapping[tuple[str, int], WeightPlace]
    variables: Mapping[str, Any]
    unused: tuple[str, ...] = ()


def capture(model: Any, inputs: Any) -> Capture:
    """Return the Graph of ``model`` on ``inputs``, a structure of symbolic tensors."""
    return _Writer(model, trace(model, inputs)).write()


def variables_by_name(model: Any) -> dict[str, Any]:
    """Return the model's variables by path; equal paths are told apart by a number."""
    found: dict[str, Any] = {}
    for variable in model.variables:
        name, number = variable.path, 2
        while name in found:
            name, number = f"{variable.path}#{number}", number + 1
        found[name] = variable
    return found


class _Writer:
    def __init__(self, model: Any, traced: Trace) -> None:
        self.model = model
        self.trace = traced
        self.graph = Graph()
        self.sources: dict[int, tuple[str, int]] = {}
        self.counts: Counter[tuple[tuple[str, ...], str]] = Counter()
        self.calls: list[CallPlaces] = []
        self.weights: dict[tuple[str, int], WeightPlace] = {}
        self.variables = variables_by_name(model)
        self.names = {id(variable): name for name, variable in self.variables.items()}

    def write(self) -> Capture:
        for number, tensor in enumerate(tree.flatten(self.trace.inputs)):
            address = Address((), "nncf_model_input", number)
            self.graph.add_operation(Operation(address, KINDS["input"]))
            self.sources.setdefault(id(tensor), (str(address), 0))
        for call in self.trace.calls:
            self.calls.append(self._write_call(call))
        for number, tensor in enumerate(tree.flatten(self.trace.outputs)):
            address = Address((), "nncf_model_output", number)
            self.graph.add_operation(Operation(address, KINDS["output"]))
            self._connect([tensor], str(address))
        return Capture(
            self.graph, self.trace, self.calls, self.weights, self.variables, self._unused()
        )

    def _write_call(self, call: Call) -> CallPlaces:
        layer = call.operation if isinstance(call.operation, keras.layers.Layer) else None
        steps = steps_of(call.operation)
        uses = list(uses_of(layer)) if layer is not None else []
        keys = []
        shapes = [shape_of(tensor) for tensor in call.tensors]
        for number, step in enumerate(steps):
            address = self._address(call, step, is_layer=layer is not None)
            is_last = number == len(steps) - 1
            outputs = [shape_of(tensor) for tensor in call.outputs]
            outputs = outputs if is_last else [_inner_shape(call, number + 1, steps)]
            key = self._add(call, (number, step), address, (shapes, outputs))
            if number:
                self.graph.add_edge(Edge(keys[-1], key, 0, 0, shapes[0]))
            shapes = outputs
            keys.append(key)
        if layer is not None:
            self._fix_unseen(layer, keys)
        self._connect(call.tensors, keys[0])
        for port, tensor in enumerate(call.outputs):
            self.sources[id(tensor)] = (keys[-1], port)
        hidden = dict(self._hidden(call, keys[0])) if layer is not None and not uses else {}
        return CallPlaces(call, tuple(keys), hidden)

    def _address(self, call: Call, step: Step, *, is_layer: bool) -> Address:
        scope = (*call.scope, call.name) if is_layer else call.scope
        index = self.counts[scope, step.function]
        self.counts[scope, step.function] += 1
        return Address(scope, step.function, index)

    def _add(
        self,
        call: Call,
        numbered: tuple[int, Step],
        address: Address,
        shapes: tuple[list[Shape], list[Shape]],
    ) -> str:
        number, step = numbered
        layer = call.operation if isinstance(call.operation, keras.layers.Layer) else None
        entering, outputs = shapes
        port = max(1, len(entering))
        parameters, buffers, input_axes = [], [], {}
        for place in _places(layer, number):
            parameters.append(self._parameter(place, port))
            self.weights[str(address), port] = place
            input_axes[port] = place.use.input_axis
            entering, port = [*entering, place.use.shape], port + 1
        for use in statistics_of(layer) if layer is not None and number == 0 else ():
            buffers.append(Buffer(self._name(WeightPlace(layer, use).variable), port, (0,)))
            entering, port = [*entering, use.shape], port + 1
        reason = call.reason or (_opaque_reason(call) if step.kind.name == "unknown" else "")
        known = shapes[0] and len(entering) == port
        operation = Operation(
            address,
            step.kind,
            layer="/".join((*call.scope[1:], call.name)),
            layer_class=type(call.operation).__name__,
            attributes=attributes_of(call, step, layer, (entering if known else [], outputs))
            | {"weight_input_axes": input_axes},
            parameters=tuple(parameters),
            buffers=tuple(buffers),
            unreached=reason or None,
        )
        self.graph.add_operation(operation)
        return operation.key

    def _name(self, variable: Any) -> str:
        name = self.names.setdefault(id(variable), variable.path)
        self.variables.setdefault(name, variable)
        return name

    def _parameter(self, place: WeightPlace, port: int) -> Parameter:
        variable, use = place.variable, place.use
        name = self._name(variable)
        return Parameter(
            name, port, use.shape, trainable=variable.trainable, channel_axis=use.channel_axis
        )

    def _fix_unseen(self, layer: Any, keys: list[str]) -> None:
        """Note that all variables of a layer keep their shapes which none of its operations has."""
        seen = {
            p.name for key in keys for p in (*self.graph[key].parameters, *self.graph[key].buffers)
        }
        for variable in layer.weights:
            name = self._name(variable)
            if name not in seen:
                axes = range(len(variable.shape))
                self.graph.fixed.update({(name, axis): keys[0] for axis in axes})

    def _connect(self, tensors: list[Any], key: str) -> None:
        for port, tensor in enumerate(tensors):
            found = self.sources.get(id(tensor))
            if found is not None:
                self.graph.add_edge(
                    Edge(found[0], key, found[1], port, shape_of(tensor), _dtype(tensor))
                )

    # --- layers inside of calls that were not followed -----------------------------------------

    def _hidden(self, call: Call, key: str) -> Iterator[tuple[str, Hidden]]:
        """Add the weighted layers inside of a call that is one operation of the graph.

        Each reads from an operation of its own that stands for what nobody has seen.
        """
        for path, layer in _inner_layers(call.operation):
            uses = list(uses_of(layer))
            if not uses:
                continue
            scope = (*call.scope, *(() if call.operation is self.model else (call.name,)), *path)
            step = steps_of(layer)[0]
            index = self.counts[scope, step.function]
            self.counts[scope, step.function] += 1
            address = Address(scope, step.function, index)
            inner = Call(layer, (), {}, (), scope, path[-1])
            source = Address(scope, "unseen", index)
            why = self.graph[key].unreached
            self.graph.add_operation(Operation(source, KINDS["unknown"], unreached=why))
            added = self._add(inner, (0, step), address, ([], []))
            shape = _built_shape(layer)
            if shape is not None:
                self.graph.add_edge(Edge(str(source), added, 0, 0, shape))
            yield added, Hidden(path, layer)

    def _unused(self) -> tuple[str, ...]:
        seen: set[int] = set()
        for places in self.calls:
            layer = places.call.operation
            if isinstance(layer, keras.layers.Layer):
                seen.update(id(item) for item in (layer, *layer._flatten_layers()))
        return tuple(
            "/".join(path)
            for path, layer in _inner_layers(self.model)
            if id(layer) not in seen and any(True for _ in uses_of(layer))
        )


def _inner_layers(layer: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield all layers inside of a layer with the names that lead to them; each once."""
    seen = {id(layer)}
    waiting = [((), layer)]
    while waiting:
        path, parent = waiting.pop(0)
        for child in parent._flatten_layers(recursive=False, include_self=False):
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append(((*path, child.name), child))
                yield (*path, child.name), child


def _opaque_reason(call: Call) -> str:
    name = type(call.operation).__name__
    if isinstance(call.operation, keras.layers.Layer):
        own = "a layer of your own" if is_own_code(call.operation) else "a layer"
        return f"nncf does not look inside {name}, {own}" if own else ""
    return f"nncf does not know what {name} computes"


def _places(layer: Any, step: int) -> Iterator[WeightPlace]:
    """Yield the weights that a step of a layer takes, then its biases and their like."""
    if layer is not None:
        for use in (*uses_of(layer), *vectors_of(layer)):
            if use.step == step:
                yield WeightPlace(layer, use)


def _inner_shape(call: Call, number: int, steps: list[Step]) -> Shape:
    """Return the shape of what step ``number`` of a call reads."""
    if number == 1 and steps[0].function == "depthwise_conv":
        depthwise = call.operation.depthwise_kernel.shape
        shape = list(shape_of(call.outputs[0]))
        shape[channel_axis(call.operation, len(shape))] = depthwise[-1] * depthwise[-2]
        return tuple(shape)
    return shape_of(call.outputs[0])


def _built_shape(layer: Any) -> tuple[int, ...] | None:
    shapes = getattr(layer, "_build_shapes_dict", None) or {}
    shape = next(iter(shapes.values()), None)
    if not isinstance(shape, (tuple, list)) or any(not _is_size(n) for n in shape):
        return None
    return tuple(1 if n is None else n for n in shape)


def _is_size(value: Any) -> bool:
    return value is None or isinstance(value, int)


def _dtype(tensor: Any) -> DType:
    name = keras.backend.standardize_dtype(tensor.dtype)
    if name == "bool":
        return "other"
    return "float" if "float" in name else "integer"
