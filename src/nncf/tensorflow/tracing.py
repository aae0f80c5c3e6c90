# SPDX-License-Identifier: Apache-2.0
"""Tracing: a Keras model as a flat list of calls of its layers and operations.

A model, a nested model and a layer of a user are run once on symbolic tensors, by their
``call``; what they call is written down, and what can be followed is followed inside. The rest is
one call: a layer that reads its own variables, leaves Keras for TensorFlow, or takes other
branches in training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow
from keras import tree

from nncf.tensorflow.op_kinds import WRITTEN_OUT, is_followed, is_own_code


class NotFollowed(Exception):  # it says what happened
    """The inside of a layer cannot be written as a graph; the text says why."""


@dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    ``args`` and ``kwargs`` are those of the call, ``outputs`` its results, flat; symbolic tensors
    in both stand for values. ``scope`` are the names of the model and the layers around it,
    ``name`` its own, with ``^k`` for the k-th of several calls. ``reason`` says why a layer
    that could have been followed was not.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]
    scope: tuple[str, ...]
    name: str
    reason: str = ""

    @property
    def tensors(self) -> list[Any]:
        """The symbolic tensors among the arguments, in order."""
        return [x for x in tree.flatten((self.args, self.kwargs)) if is_symbolic(x)]


@dataclass
class Trace:
    """The calls of a model in order of execution, its inputs and its outputs as structures."""

    inputs: Any
    outputs: Any
    calls: list[Call] = field(default_factory=list)
    reason: str = ""


def is_symbolic(value: Any) -> bool:
    """Tell whether a value is a symbolic tensor of Keras."""
    return isinstance(value, keras.KerasTensor)


def fresh(tensor: Any) -> Any:
    """Return a symbolic tensor like another, without its history."""
    return keras.KerasTensor(tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse)


def trace(model: Any, inputs: Any) -> Trace:
    """Return the calls of ``model`` on ``inputs``, a structure of symbolic tensors.

    A model that cannot be followed itself is one call in the trace, with the reason.
    """
    scope = (type(model).__name__,)
    tracer = _Tracer()
    try:
        outputs = tracer.follow(model, (inputs,), {}, scope)
        return Trace(inputs, outputs, tracer.calls)
    except NotFollowed as reason:
        with _no_new_nodes():
            result = model(tree.map_structure(fresh, inputs))
        outputs = tree.map_structure(fresh, result)
        flat = tuple(tree.flatten(outputs))
        whole = Call(model, (inputs,), {}, flat, scope, model.name, reason=str(reason))
        return Trace(inputs, outputs, [whole], reason=str(reason))


class _Tracer:
    def __init__(self) -> None:
        self.calls: list[Call] = []

    def follow(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], scope: tuple[str, ...]
    ) -> Any:
        """Write down the calls inside ``layer``; return its outputs as values of this trace."""
        _refuse_own_variables(layer)
        placeholders = {id(x): fresh(x) for x in tree.flatten((args, kwargs)) if is_symbolic(x)}
        values: dict[int, Any] = {}
        for x in tree.flatten((args, kwargs)):
            if is_symbolic(x):
                values[id(placeholders[id(x)])] = x
        inside = _substituted((args, kwargs), placeholders)
        with _no_new_nodes():
            outputs, nodes = _run(layer, *inside)
            _refuse_branches(layer, inside, nodes)
        return self._write(outputs, nodes, values, kwargs.get("training"), scope)

    def _write(
        self,
        outputs: Any,
        nodes: Sequence[Any],
        values: dict[int, Any],
        training: bool | None,
        scope: tuple[str, ...],
    ) -> Any:
        kept = len(self.calls)
        try:
            names = _names(node.operation for node in nodes)
            for node, name in zip(nodes, names, strict=True):
                args = _substituted(node.arguments.args, values)
                kwargs = _substituted(node.arguments.kwargs, values)
                operation = node.operation
                if _only_converts(node, args):
                    values[id(node.outputs[0])] = args[0]
                    continue
                if training is not None and _takes_training(operation):
                    kwargs.setdefault("training", training)
                found = self._call(operation, args, kwargs, scope, name, node.outputs)
                for symbol, value in zip(node.outputs, found, strict=True):
                    values[id(symbol)] = value
            return _substituted(outputs, values)
        except BaseException:
            del self.calls[kept:]
            raise

    def _call(
        self,
        operation: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        scope: tuple[str, ...],
        name: str,
        outputs: Sequence[Any],
    ) -> Sequence[Any]:
        reason = ""
        if is_followed(operation):
            try:
                inside = self.follow(operation, args, kwargs, (*scope, name))
                return [x for x in tree.flatten(inside) if is_symbolic(x)]
            except NotFollowed as error:
                reason = str(error)
        results = tuple(fresh(x) for x in outputs)
        self.calls.append(Call(operation, args, kwargs, results, scope, name, reason))
        return results


def _names(operations: Any) -> list[str]:
    """Return the name of each call in one scope; layers called several times are numbered."""
    called = list(operations)
    total = Counter(operation.name for operation in called)
    seen: Counter[str] = Counter()
    names = []
    for operation in called:
        name = operation.name
        is_layer = isinstance(operation, keras.layers.Layer)
        names.append(f"{name}^{seen[name]}" if is_layer and total[name] > 1 else name)
        seen[name] += 1
    return names


def _only_converts(node: Any, args: tuple[Any, ...]) -> bool:
    """Tell whether a call of ``convert_to_tensor`` gives back what it gets."""
    if type(node.operation).__name__ != "ConvertToTensor" or not args or not is_symbolic(args[0]):
        return False
    return args[0].dtype == node.outputs[0].dtype


def _takes_training(operation: Any) -> bool:
    return "training" in getattr(operation, "_call_has_context_arg", {}) and bool(
        operation._call_has_context_arg["training"]
    )


def _substituted(structure: Any, values: dict[int, Any]) -> Any:
    return tree.map_structure(lambda x: values.get(id(x), x) if is_symbolic(x) else x, structure)


# ------------------------------------------------------------------------------ one layer's inside


def _run(layer: Any, args: Any, kwargs: Any) -> tuple[Any, list[Any]]:
    """Return the symbolic outputs of a layer's ``call``, and the nodes that led to them."""
    losses = len(layer.losses)
    try:
        outputs = layer.call(*args, **kwargs)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise NotFollowed(f"its call fails on symbolic tensors: {first[:200]}") from error
    if len(layer.losses) != losses:
        raise NotFollowed("its call adds a loss")
    known = {id(x) for x in tree.flatten((args, kwargs)) if is_symbolic(x)}
    return outputs, _ordered(outputs, known)


def _ordered(outputs: Any, known: set[int]) -> list[Any]:
    """Return the nodes behind the outputs, every one after those that it reads from."""
    order: list[Any] = []
    done: set[int] = set()
    stack: list[tuple[Any, bool]] = [(x, False) for x in reversed(tree.flatten(outputs))]
    while stack:
        item, ready = stack.pop()
        if ready:
            if id(item) not in done:
                done.add(id(item))
                order.append(item)
            continue
        if id(item) in known:
            continue
        node = _node_of(item)
        if id(node) in done:
            continue
        _refuse_arguments(node)
        stack.append((node, True))
        stack.extend((x, False) for x in reversed(node.arguments.keras_tensors))
    return order


def _node_of(tensor: Any) -> Any:
    history = getattr(tensor, "_keras_history", None)
    if not is_symbolic(tensor) or history is None or history.operation is None:
        raise NotFollowed("it returns what no layer and no operation of keras.ops has computed")
    return history.operation._inbound_nodes[history.node_index]


def _refuse_arguments(node: Any) -> None:
    for value in tree.flatten((node.arguments.args, node.arguments.kwargs)):
        if isinstance(value, (keras.Variable, tensorflow.Variable)):
            raise NotFollowed(f"it gives a variable to {type(node.operation).__name__}")
        if callable(value) and not isinstance(value, (keras.Operation, type)):
            raise NotFollowed(f"it gives a function to {type(node.operation).__name__}")


def _refuse_own_variables(layer: Any) -> None:
    """Refuse a layer with variables of its own: a snapshot of them would end up in the graph."""
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    if own:
        raise NotFollowed(f"it has a variable of its own ({own[0].name})")
    if layer.activity_regularizer is not None:
        raise NotFollowed("it has an activity_regularizer")


def _refuse_branches(layer: Any, inside: tuple[Any, Any], nodes: Sequence[Any]) -> None:
    """Refuse a layer that calls other things in training than it does in evaluation."""
    if not is_own_code(layer) or isinstance(layer, WRITTEN_OUT) or not _takes_training(layer):
        return
    args, kwargs = inside
    given = kwargs.get("training")
    for training in (True, False) if given is None else ():
        _, others = _run(layer, args, {**kwargs, "training": training})
        if [_identity(node) for node in others] != [_identity(node) for node in nodes]:
            raise NotFollowed("it calls other layers in training than in evaluation")


def _identity(node: Any) -> Any:
    operation = node.operation
    return id(operation) if isinstance(operation, keras.layers.Layer) else type(operation)


@contextmanager
def _no_new_nodes() -> Iterator[None]:
    """Forget afterwards that layers were called inside: their lists of nodes are as before."""
    made: list[Any] = []
    node_class = _node_class()
    initialize: Callable[..., None] = node_class.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **kwargs)
        made.append(self)

    node_class.__init__ = noted
    try:
        yield
    finally:
        node_class.__init__ = initialize
        gone = {id(node) for node in made}
        for node in made:
            operations = [node.operation]
            operations += [
                x._keras_history.operation
                for x in node.arguments.keras_tensors
                if x._keras_history.operation is not None
            ]
            for operation in operations:
                for nodes in (operation._inbound_nodes, operation._outbound_nodes):
                    nodes[:] = [item for item in nodes if id(item) not in gone]


def _node_class() -> Any:
    from keras.src.ops.node import Node

    return Node
