# SPDX-License-Identifier: Apache-2.0
"""Fused patterns: chains of operations that a runtime computes as one.

No quantizer belongs inside such a chain. A chain is spelled with one letter per step and must
match a regular expression:

    L multiply-accumulate (convolution, linear, matmul)   A arithmetic on two activations
    B batch norm                                          a arithmetic with a constant
    G group norm                                          T activation function
    C activation function that clips (relu6, hardtanh)

A step may be a *composite*: several operations that together compute a function of one tensor,
recognised by two paths from that tensor meeting again (``x * sigmoid(x)``, GELU by its formula,
an L2 norm, a hand-written layer norm).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nncf.graph.graph import Edge, Graph, Operation
from nncf.graph.kinds import WEIGHTED

LINEAR_LIKE = frozenset(
    ["convolution", "depthwise_convolution", "transposed_convolution", "deformable_convolution"]
    + ["linear", "matmul"]
)
ARITHMETIC = frozenset(["add", "subtract", "multiply", "divide"])
ACTIVATIONS = frozenset(
    ["relu", "relu6", "hardtanh", "elu", "prelu", "leaky_relu", "sigmoid", "gelu", "silu"]
    + ["mish", "hardsigmoid", "hardswish"]
)
_CLIPPING = frozenset(["relu6", "hardtanh"])
_REDUCTIONS = frozenset(["mean", "sum", "l2_norm"])
# What a composite may consist of: functions of each element, reductions, and no-ops between.
_FUNCTIONS = (
    ARITHMETIC
    | ACTIVATIONS
    | _REDUCTIONS
    | frozenset(["power", "tanh", "softplus", "exp", "log", "sqrt", "erf", "maximum", "minimum"])
    | frozenset(["identity", "expand"])
)
_CHAIN = re.compile(r"(L[Aa]?a*|[Aa]a*|G(?=[TC]$)|G$|)(B[TC]?|[TC]B?)?|L?aCa")
_DEEPEST_COMPOSITE = 24

Tensor = tuple[str, int]
"""An operation's key and one of its output ports."""


@dataclass
class Chain:
    """Fused operations in order of execution; ``label`` is what a composite head computes."""

    members: list[str]
    spelling: str = ""
    label: str | None = None

    @property
    def head(self) -> str:
        return self.members[0]


@dataclass
class Fusion:
    """What fuses in a graph.

    ``chain_of`` maps every operation to its Chain, ``unit_of`` an operation to the last
    operation of its composite (itself when in none). ``preprocessing`` holds the operations
    that normalise a model input (``(x - mean) / std`` with constants).
    """

    chain_of: dict[str, Chain] = field(default_factory=dict)
    unit_of: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    preprocessing: set[str] = field(default_factory=set)

    def is_head(self, key: str) -> bool:
        """Tell whether the operation is in the first step of its chain."""
        return self.unit_of[key] == self.unit_of[self.chain_of[key].head]

    def label(self, key: str) -> str | None:
        """Return what the operation's composite computes; None when it is in none."""
        return self.labels.get(self.unit_of[key])


def find_constants(graph: Graph) -> frozenset[str]:
    """Return operations that carry no activation: made of constants and integers alone.

    Attention masks and position indices are such; what an embedding looks up is not.
    """
    found: set[str] = set()
    for operation in graph.operations():
        if operation.kind.name == "constant":
            found.add(operation.key)
        elif operation.kind.name not in WEIGHTED | {"input", "output", "unknown"}:
            edges = graph.inputs_of(operation.key)
            if all(edge.dtype != "float" or edge.source in found for edge in edges):
                found.add(operation.key)
    return frozenset(found)


def fuse(graph: Graph, constants: Iterable[str] = ()) -> Fusion:
    """Return the fused chains of a graph; ``constants`` are operations that count as such."""
    return _Fuser(graph, frozenset(constants)).run()


class _Fuser:
    def __init__(self, graph: Graph, constants: frozenset[str]) -> None:
        self.graph = graph
        self.order = {operation.key: place for place, operation in enumerate(graph.operations())}
        self.sources: dict[str, list[Tensor]] = {key: [] for key in self.order}
        self.readers: dict[Tensor, list[str]] = {}
        for edge in graph.edges():
            self.readers.setdefault((edge.source, edge.output_port), []).append(edge.target)
            if _carries_activation(edge, constants):
                self.sources[edge.target].append((edge.source, edge.output_port))
        self.fusion = Fusion(unit_of={key: key for key in self.order})
        self.parents: dict[Tensor, Tensor] = {}
        self.regions: dict[str, frozenset[str]] = {}

    def run(self) -> Fusion:
        for operation in self.graph.operations(*_FUNCTIONS):
            self._grow_composite(operation)
        for unit, region in self.regions.items():
            for key in region:
                self.fusion.unit_of[key] = unit
        for operation in self.graph.operations():
            if self.fusion.unit_of[operation.key] == operation.key:
                self._place_unit(operation)
        return self.fusion

    # composites ----------------------------------------------------------------------------

    def _grow_composite(self, operation: Operation) -> None:
        """Note of which tensor the operation is a function, and the composite it completes."""
        sources = list(dict.fromkeys(self.sources[operation.key]))
        if len(sources) == 1:
            self.parents[operation.key, 0] = sources[0]
        elif len(sources) == 2:
            origin = self._meeting(*sources)
            region = self._region(operation.key, origin) if origin else None
            if origin and region:
                self.parents[operation.key, 0] = origin
                self._add_region(operation.key, region)

    def _meeting(self, first: Tensor, second: Tensor) -> Tensor | None:
        """Return the nearest tensor that both are functions of."""
        ahead = dict.fromkeys(self._ancestors(first))
        return next((tensor for tensor in self._ancestors(second) if tensor in ahead), None)

    def _ancestors(self, tensor: Tensor) -> Iterable[Tensor]:
        current: Tensor | None = tensor
        for _ in range(_DEEPEST_COMPOSITE):
            if current is None:
                return
            yield current
            current = self.parents.get(current)

    def _region(self, last: str, origin: Tensor) -> frozenset[str] | None:
        """Return the operations between, or None when others read something inside."""
        region = {last}
        waiting = [last]
        while waiting:
            for tensor in self.sources[waiting.pop()]:
                if tensor != origin and tensor[0] not in region:
                    region.add(tensor[0])
                    waiting.append(tensor[0])
        inner = region - {last}
        closed = all(reader in region for key in inner for reader in self.readers.get((key, 0), ()))
        return frozenset(region) if closed else None

    def _add_region(self, last: str, region: frozenset[str]) -> None:
        for inner in region - {last}:
            if inner in self.regions:
                del self.regions[inner]
                del self.fusion.labels[inner]
        kinds = {self.graph[key].kind.name for key in region}
        self.regions[last] = region
        self.fusion.labels[last] = _label(kinds)

    # chains --------------------------------------------------------------------------------

    def _place_unit(self, operation: Operation) -> None:
        """Append a step to the chain that feeds it, or start a chain with it."""
        unit = operation.key
        members = sorted(self.regions.get(unit, [unit]), key=self.order.__getitem__)
        inputs = self._inputs_of(members)
        letter = self._letter(operation, inputs)
        feeding = [
            chain for tensor in inputs if (chain := self._extensible(tensor, members, letter))
        ]
        if feeding:
            chain = max(feeding, key=lambda chain: self.order[chain.members[-1]])
            chain.members.extend(members)
            chain.spelling += letter
        else:
            chain = Chain(list(members), letter, self.fusion.labels.get(unit))
        for key in members:
            self.fusion.chain_of[key] = chain
        if chain.spelling == "aa" and self._starts_at_input(chain):
            self.fusion.preprocessing.update(chain.members)

    def _inputs_of(self, members: list[str]) -> list[Tensor]:
        inside = set(members)
        found = (tensor for key in members for tensor in self.sources[key])
        return list(dict.fromkeys(tensor for tensor in found if tensor[0] not in inside))

    def _letter(self, operation: Operation, inputs: list[Tensor]) -> str:
        kind = operation.kind.name
        label = self.fusion.labels.get(operation.key)
        if label is not None:
            return "T" if label == "activation" else "x"
        if kind in LINEAR_LIKE:
            return "L"
        if kind in ARITHMETIC:
            return "a" if len(inputs) == 1 else "A"
        if kind in _CLIPPING:
            return "C"
        if kind in ACTIVATIONS:
            return "T"
        return {"batch_norm": "B", "group_norm": "G"}.get(kind, "x")

    def _extensible(self, tensor: Tensor, members: list[str], letter: str) -> Chain | None:
        """Return the chain that ends at ``tensor``, if the step may follow as its only reader."""
        chain = self.fusion.chain_of.get(tensor[0])
        if chain is None or letter in "xLG" or chain.spelling == "x":
            return None
        inside = set(members)
        if any(reader not in inside for reader in self.readers[tensor]):
            return None
        if tensor != (chain.members[-1], 0) or not _CHAIN.fullmatch(chain.spelling + letter):
            return None
        if letter == "A" and self._subtracts(members):
            return None
        return chain

    def _subtracts(self, members: list[str]) -> bool:
        return self.graph[members[0]].kind.name == "subtract"

    def _starts_at_input(self, chain: Chain) -> bool:
        shift, scale = (self.graph[key].kind.name for key in chain.members)
        tensors = self.sources[chain.head]
        return (
            shift in ("add", "subtract")
            and scale in ("multiply", "divide")
            and all(self.graph[key].kind.name == "input" for key, _ in tensors)
        )


def _carries_activation(edge: Edge, constants: frozenset[str]) -> bool:
    return edge.dtype == "float" and edge.source not in constants


def _label(kinds: set[str]) -> str:
    """Return what a composite of these kinds computes: activation, l2_norm or normalisation."""
    if not kinds & _REDUCTIONS:
        return "activation"
    return "l2_norm" if "sum" in kinds and "subtract" not in kinds else "normalisation"


def describe(chain: Chain, graph: Mapping[str, Operation] | Graph) -> str:
    """Return the chain as ``convolution + batch_norm + relu``."""
    return " + ".join(str(graph[key].kind) for key in chain.members)
