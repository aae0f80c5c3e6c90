# SPDX-License-Identifier: Apache-2.0
"""Rebuild: a model that calls the user's layers as before, with CompressionOps in between."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import keras
from keras import tree

from nncf.compression.layout import Layout
from nncf.compression.sites import Site, sites_of
from nncf.tensorflow.capture import CallPlaces, Capture
from nncf.tensorflow.compressed_layer import CompressedLayer, CompressedWeight, InnerOps
from nncf.tensorflow.tracing import is_symbolic

_LOGGER = logging.getLogger("nncf")

_OWN_STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def rebuild(model: Any, captured: Capture, layout: Layout, ops: Mapping[str, Any]) -> Any:
    """Return a model of the same layers and variables in which the ops of a layout run.

    ``ops`` are the running ops by Insert name. The given model stays as it is.
    """
    return _Builder(model, captured, sites_of(layout, captured.graph), ops).build()


class _Builder:
    def __init__(
        self, model: Any, captured: Capture, sites: Mapping[str, Site], ops: Mapping[str, Any]
    ) -> None:
        self.model = model
        self.captured = captured
        self.sites = sites
        self.ops = ops
        self.values: dict[int, Any] = {}
        self.passed: dict[tuple[int, tuple[str, ...]], Any] = {}
        self.made: dict[Any, Any] = {}
        self.names: dict[str, Any] = {}

    def build(self) -> Any:
        trace = self.captured.trace
        inputs = self._inputs(trace.inputs)
        for places in self.captured.calls:
            self._call(places)
        ends = [op.key for op in self.captured.graph.operations("output")]
        flat = [
            self._through(self._value(token), self._before(key, 0))
            for token, key in zip(tree.flatten(trace.outputs), ends, strict=True)
        ]
        outputs = tree.pack_sequence_as(trace.outputs, flat)
        return _make_model(self.model, inputs, outputs)

    def _inputs(self, tokens: Any) -> Any:
        names = [getattr(x, "name", None) for x in getattr(self.model, "inputs", None) or ()]
        flat = tree.flatten(tokens)
        known = names if len(names) == len(flat) else [None] * len(flat)
        made = []
        for token, name in zip(flat, known, strict=True):
            value = keras.Input(
                batch_shape=token.shape, dtype=token.dtype, name=name, sparse=token.sparse
            )
            self.names[value._keras_history.operation.name] = value
            self.values[id(token)] = value
            made.append(value)
        return tree.pack_sequence_as(tokens, made)

    def _value(self, token: Any) -> Any:
        return self.values[id(token)]

    def _before(self, key: str, port: int) -> tuple[str, ...]:
        site = self.sites.get(key)
        return tuple(site.before.get(port, ())) if site else ()

    def _after(self, key: str, port: int) -> tuple[str, ...]:
        site = self.sites.get(key)
        return tuple(site.after.get(port, ())) if site else ()

    def _through(self, value: Any, names: tuple[str, ...]) -> Any:
        """Return a value behind ops; readers that share value and ops share the result."""
        if not names:
            return value
        key = (id(value), names)
        if key not in self.passed:
            result = value
            for name in names:
                result = self.ops[name](result)
            self.passed[key] = result
        return self.passed[key]

    def _call(self, places: CallPlaces) -> None:
        call, steps = places.call, places.steps
        port = iter(range(len(call.tensors)))

        def filled(item: Any) -> Any:
            if not is_symbolic(item):
                return item
            return self._through(self._value(item), self._before(steps[0], next(port)))

        args, kwargs = tree.map_structure(filled, (call.args, call.kwargs))
        places.made = self._operation(places)
        outputs = places.made(*args, **kwargs)
        found = [x for x in tree.flatten(outputs) if is_symbolic(x)]
        for number, (token, value) in enumerate(zip(call.outputs, found, strict=True)):
            self.values[id(token)] = self._through(value, self._after(steps[-1], number))

    # --- the layer that is called ----------------------------------------------------------

    def _operation(self, places: CallPlaces) -> Any:
        """Return the layer to call: the user's own, or one around it."""
        operation = places.call.operation
        used: list[str] = []
        weights = [*self._weights(places, used)]
        inner = [*self._inner(places, used)]
        key = (id(operation), tuple(weights), tuple(inner), tuple(used))
        if key not in self.made:
            self.made[key] = self._made(places, weights, inner, used)
        return self.made[key]

    def _made(
        self, places: CallPlaces, weights: list[Any], inner: list[Any], used: list[str]
    ) -> Any:
        operation = places.call.operation
        name = self._unique(operation, places.call.scope)
        is_layer = isinstance(operation, keras.layers.Layer)
        if used or (is_layer and name != operation.name):
            operation = CompressedLayer(
                operation, [self.ops[n] for n in used], weights, inner, name=name
            )
        elif not is_layer and (name != operation.name or operation._inbound_nodes):
            operation = copy.copy(operation)
            operation.name, operation._inbound_nodes, operation._outbound_nodes = name, [], []
        self.names[name] = operation
        return operation

    def _unique(self, operation: Any, scope: tuple[str, ...]) -> str:
        """Return the operation's name, or one that no other of this model has."""
        name, number = operation.name, 1
        inside = "_".join(part.replace("^", "_") for part in scope[1:])
        while name in self.names:
            name = f"{inside}_{operation.name}" if inside and number == 1 else ""
            name = name or f"{operation.name}_{number}"
            number += 1
        return name

    def _weights(self, places: CallPlaces, used: list[str]) -> list[CompressedWeight]:
        found = []
        paths = dict.fromkeys(places.steps, ()) | {
            key: hidden.path for key, hidden in places.hidden.items()
        }
        for (key, port), place in self.captured.weights.items():
            names = self._before(key, port) if key in paths else ()
            if names:
                numbers = tuple(_number(used, name) for name in names)
                use = place.use
                found.append(CompressedWeight(paths[key], use.attribute, use.shape, numbers))
        return found

    def _inner(self, places: CallPlaces, used: list[str]) -> list[InnerOps]:
        found = []
        for step, (former, key) in enumerate(zip(places.steps, places.steps[1:], strict=False), 1):
            names = (*self._after(former, 0), *self._before(key, 0))
            if names:
                found.append(InnerOps((), step, tuple(_number(used, name) for name in names)))
        for key, hidden in places.hidden.items():
            names = self._before(key, 0)
            if names:
                numbers = tuple(_number(used, name) for name in names)
                found.append(InnerOps(hidden.path, 0, numbers))
        return found


def _number(used: list[str], name: str) -> int:
    if name not in used:
        used.append(name)
    return used.index(name)


# ------------------------------------------------------------------------------ the model itself


def _make_model(model: Any, inputs: Any, outputs: Any) -> Any:
    """Return a model of the given one's class where that is possible, else a functional one."""
    kind = type(model)
    is_plain = kind.__module__.startswith("keras.")
    if not is_plain and isinstance(model, keras.src.models.functional.Functional):
        try:
            return kind(inputs=inputs, outputs=outputs, name=model.name)
        except Exception as error:  # noqa: BLE001  # a user's constructor may raise anything
            _LOGGER.debug("%s cannot be made of inputs and outputs: %r", kind.__name__, error)
    if not is_plain:
        _warn_of_own_steps(kind)
    return keras.Model(inputs=inputs, outputs=outputs, name=model.name)


def _warn_of_own_steps(kind: type) -> None:
    own = [
        name
        for name in _OWN_STEPS
        if any(name in vars(b) for b in kind.__mro__ if not b.__module__.startswith("keras."))
    ]
    if own:
        _LOGGER.warning(
            "The compressed model is a functional keras.Model, not a %s: %s of that class is not "
            "taken over. Train it in a loop of your own, or build the model from inputs and outputs "
            "(%s(inputs=…, outputs=…)), then its class is kept.",
            *(kind.__name__, ", ".join(own), kind.__name__),
        )
