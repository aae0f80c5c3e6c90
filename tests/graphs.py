# SPDX-License-Identifier: Apache-2.0
"""Builds small Graphs by hand, without a framework."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import Any

from nncf.graph.address import Address
from nncf.graph.graph import Edge, Graph, Operation, Parameter
from nncf.graph.kinds import KINDS, WEIGHTED

SHAPE = (1, 8, 16, 16)
_WEIGHT_SHAPES = {
    "convolution": (8, 8, 3, 3),
    "depthwise_convolution": (8, 1, 3, 3),
    "transposed_convolution": (8, 8, 2, 2),
    "deformable_convolution": (8, 8, 3, 3),
    "linear": (8, 8),
    "embedding": (100, 8),
    "embedding_bag": (100, 8),
}


class Builder:
    """Adds operations one by one; names are ``Net/<scope>/<kind>_<count>``.

    ``tensor`` arguments are keys of operations, or ``(key, output port)``.
    """

    def __init__(self) -> None:
        self.graph = Graph()
        self.counts: Counter[str] = Counter()

    def input(self, dtype: str = "float", shape: tuple[int, ...] = SHAPE) -> str:
        key = self._end("input")
        self.dtypes = {**getattr(self, "dtypes", {}), key: (dtype, shape)}
        return key

    def output(self, tensor: Any) -> str:
        key = self._end("output")
        self._connect(key, [tensor], {})
        return key

    def constant(self) -> str:
        operation = Operation(Address((), "nncf_external", self._count("c")), KINDS["constant"])
        self.graph.add_operation(operation)
        return operation.key

    def op(self, kind: str, *tensors: Any, scope: str = "", **extra: Any) -> str:
        """Add an operation; returns its key.

        ``parameter`` names its weight, ``ports`` gives the input port of each tensor,
        ``shape``/``dtype`` describe its output, ``aliased`` marks its input edges; other
        arguments are fields of Operation.
        """
        options = {n: extra.pop(n, None) for n in ("parameter", "ports", "aliased", "trainable")}
        made = {n: extra.pop(n) for n in ("shape", "dtype") if n in extra}
        name = extra.pop("name", kind)
        path = ("Net", *(part for part in scope.split("/") if part))
        address = Address(path, name, self._count("/".join((*path, name))))
        if kind in WEIGHTED and "parameters" not in extra:
            extra["parameters"] = (self._weight(kind, str(address), options),)
        if "attributes" in extra:
            extra["attributes"] = MappingProxyType(extra["attributes"])
        operation = Operation(address, KINDS[kind], **extra)
        self.graph.add_operation(operation)
        self._connect(operation.key, tensors, options)
        if made:
            found = (made.get("dtype", "float"), made.get("shape", SHAPE))
            self.dtypes = {**getattr(self, "dtypes", {}), operation.key: found}
        return operation.key

    def chain(self, tensor: Any, *kinds: str, scope: str = "") -> str:
        """Add operations one after the other; returns the key of the last."""
        for kind in kinds:
            tensor = self.op(kind, tensor, scope=scope)
        return tensor

    def _weight(self, kind: str, key: str, options: dict[str, Any]) -> Parameter:
        axis = 1 if kind == "transposed_convolution" else 0
        trainable = options["trainable"] is not False
        name = options["parameter"] or key
        return Parameter(name, 1, _WEIGHT_SHAPES[kind], trainable, channel_axis=axis)

    def _end(self, kind: str) -> str:
        operation = Operation(Address((), f"nncf_model_{kind}", self._count(kind)), KINDS[kind])
        self.graph.add_operation(operation)
        return operation.key

    def _count(self, name: str) -> int:
        self.counts[name] += 1
        return self.counts[name] - 1

    def _connect(self, key: str, tensors: Any, options: dict[str, Any]) -> None:
        ports = options.get("ports") or range(len(tensors))
        for port, tensor in zip(ports, tensors, strict=True):
            source, output = tensor if isinstance(tensor, tuple) else (tensor, 0)
            dtype, shape = getattr(self, "dtypes", {}).get(source, ("float", SHAPE))
            aliased = bool(options.get("aliased"))
            self.graph.add_edge(Edge(source, key, output, port, shape, dtype, aliased))


def chain(*kinds: str) -> Graph:
    """Return a graph of operations one after the other: ``chain("input", "convolution")``."""
    builder = Builder()
    tensor = ""
    for kind in kinds:
        if kind in ("input", "output"):
            tensor = builder.input() if kind == "input" else builder.output(tensor)
        else:
            tensor = builder.op(kind, tensor)
    return builder.graph
