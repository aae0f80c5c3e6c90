# SPDX-License-Identifier: Apache-2.0
"""The Graph: the operations of a model and the tensors between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import networkx

from nncf.graph.address import Address
from nncf.graph.kinds import Kind

DType = Literal["float", "integer", "other"]


@dataclass(frozen=True)
class Parameter:
    """A trained tensor that enters an operation.

    ``name`` is its key in the model's state dict, ``port`` the operation's input it enters at.
    ``direct`` is False when the tensor is computed from the parameter (a standardised weight,
    say): it can be compressed at the point but not written back into the parameter.
    ``channel_axis`` is the axis of output channels, None where there is none. ``registered`` is
    the word of the module's author: True compresses the parameter whatever takes it, False
    leaves it alone, None decides by the operation. ``axes`` is for a tensor that only moves have
    made from the parameter (``gamma[None, :]``, ``token.expand(n, -1, -1)``): by its own axis,
    which axis of the parameter lies there in full, or None.
    """

    name: str
    port: int
    shape: tuple[int, ...]
    trainable: bool = True
    direct: bool = True
    channel_axis: int | None = 0
    registered: bool | None = None
    axes: tuple[int | None, ...] | None = None

    def own_axes(self) -> tuple[int | None, ...]:
        """Return, by axis of the tensor that enters, the parameter's axis; empty if computed."""
        return tuple(range(len(self.shape))) if self.direct else self.axes or ()


@dataclass(frozen=True)
class Buffer:
    """A tensor of the model that is not trained and enters an operation, as it is or moved.

    ``axes``: by axis of the tensor that enters, which axis of the buffer lies there in full.
    """

    name: str
    port: int
    axes: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Number:
    """A number among an operation's arguments that follows from the size of a tensor.

    ``path`` leads to it: ``("args", 2, 0)``, ``("kwargs", "size", 1)``. ``meaning`` is

    - ``length``: the length of ``axis`` of output ``port``; ``open`` if it is written as -1,
    - ``input_length``: the length of ``axis`` of the first input,
    - ``position``: an index into ``axis`` of the first input, from its end if negative,
    - ``padding_before`` or ``padding_after``: what is added to ``axis``,
    - ``groups``: the number of groups of a convolution or a group norm,
    - ``features``: an attribute of the layer that repeats the length of ``axis`` of the first input,
    - ``scale``: a factor or divisor, which may be computed from a length (1 / √d).
    """

    path: tuple[str | int, ...]
    value: float
    meaning: str
    axis: int = 0
    port: int = 0


@dataclass(frozen=True)
class Operation:
    """One call of one function in the model's forward.

    ``function`` is the backend's name of it (``conv2d``), ``kind`` what it means to us.
    ``layer`` is the path of the module that made the call (``layer1.0.conv1``) and
    ``layer_class`` that module's class name. ``attributes`` holds what the kind needs:
    convolutions have ``in_channels``, ``out_channels``, ``kernel_size``, ``stride``,
    ``padding``, ``dilation``, ``groups``; concat and split have ``axis``; all have
    ``input_shapes`` and ``output_shapes`` by port, ``numbers`` (see Number), those that only
    rearrange ``rearrangement`` (see ``nncf.graph.channels``), and ``inside`` names the call that
    was written out as this operation and others. A backend whose tensors are not [n, channels, …]
    gives ``input_channel_axis`` and ``channel_axis`` (of the first input, and of what is computed),
    and ``weight_axes``, the axes of output and of input channels of the weight (the latter None
    for a depthwise one). ``keeps_channels`` says why no tensor at the operation may lose channels. ``ignored_algorithms`` names
    algorithms that must leave the operation alone (``register_module``), ``claimed_by`` the one
    to which its operands belong alone. ``unreached`` says why nothing can be inserted at it, where
    that is so.
    """

    address: Address
    kind: Kind
    layer: str = ""
    layer_class: str = ""
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    parameters: tuple[Parameter, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    ignored_algorithms: frozenset[str] = frozenset()
    claimed_by: str = ""
    unreached: str | None = None

    @property
    def key(self) -> str:
        """The address as text: the operation's key in the Graph."""
        return str(self.address)

    @property
    def function(self) -> str:
        return self.address.name

    @property
    def weight(self) -> Parameter | None:
        """The weight of a convolution, linear or embedding, or else what was registered as one."""
        from nncf.graph.kinds import WEIGHTED

        known = self.kind.name in WEIGHTED
        candidates = [p for p in self.parameters if p.registered]
        candidates += [p for p in self.parameters if known and len(p.shape) > 1]
        allowed = [p for p in candidates if p.registered is not False]
        return allowed[0] if allowed else None

    @property
    def weights(self) -> tuple[Parameter, ...]:
        """The parameters that count as weights: ``weight``, or all matrices of other products."""
        if self.weight is not None:
            return (self.weight,)
        if self.kind.name in ("lstm", "gru", "matmul"):
            return tuple(item for item in self.parameters if len(item.shape) > 1)
        return ()


@dataclass(frozen=True)
class Edge:
    """A tensor going from output ``output_port`` of ``source`` to input ``input_port`` of ``target``.

    ``shape`` includes the batch axis. ``dtype`` is "other" for booleans, complex numbers and
    masks (minus infinity where attention is not allowed), which no algorithm touches. ``aliased`` marks a consumer that reads the tensor
    through an object that an in-place operation changed behind its back, or whose producer
    cannot always be intercepted: a CompressionOp for this tensor must run at the consumer's
    input, not at the producer's output.
    """

    source: str
    target: str
    output_port: int
    input_port: int
    shape: tuple[int, ...]
    dtype: DType = "float"
    aliased: bool = False


class Graph:
    """Operations keyed by address, in order of execution, and the edges between them.

    Model inputs and outputs are operations of kind ``input`` and ``output`` with the addresses
    ``/nncf_model_input_<k>`` and ``/nncf_model_output_<k>``. ``fixed`` names axes of parameters
    and buffers, ``(name, axis)``, whose lengths code outside of all operations relies on, with the
    address of the call; ``read_unseen`` the outputs, ``(operation, port)``, that code which nobody
    saw has read.
    """

    def __init__(self, operations: Iterable[Operation] = (), edges: Iterable[Edge] = ()) -> None:
        self.network: networkx.MultiDiGraph[str] = networkx.MultiDiGraph()
        self.fixed: dict[tuple[str, int], str] = {}
        self.read_unseen: set[tuple[str, int]] = set()
        for operation in operations:
            self.add_operation(operation)
        for edge in edges:
            self.add_edge(edge)

    def add_operation(self, operation: Operation) -> None:
        """Add or replace the operation with that address."""
        self.network.add_node(operation.key, operation=operation)

    def add_edge(self, edge: Edge) -> None:
        """Add an edge between operations that are both present; a repeated edge is kept once."""
        key = (edge.output_port, edge.input_port)
        self.network.add_edge(edge.source, edge.target, key=key, edge=edge)

    def __contains__(self, key: object) -> bool:
        return key in self.network

    def __len__(self) -> int:
        return len(self.network)

    def __getitem__(self, key: str) -> Operation:
        operation: Operation = self.network.nodes[key]["operation"]
        return operation

    def operations(self, *kinds: str) -> Iterator[Operation]:
        """Yield operations in order of execution, only those of the given kinds if any."""
        for _, data in self.network.nodes(data=True):
            if not kinds or data["operation"].kind.name in kinds:
                yield data["operation"]

    def edges(self) -> Iterator[Edge]:
        for _, _, data in self.network.edges(data=True):
            yield data["edge"]

    def inputs_of(self, key: str) -> list[Edge]:
        """Return the edges into an operation, ordered by input port."""
        found = [data["edge"] for _, _, data in self.network.in_edges(key, data=True)]
        return sorted(found, key=lambda edge: edge.input_port)

    def outputs_of(self, key: str) -> list[Edge]:
        """Return the edges out of an operation, ordered by output port, then by consumer."""
        found = [data["edge"] for _, _, data in self.network.out_edges(key, data=True)]
        return sorted(found, key=lambda edge: edge.output_port)

    def unite(self, other: Graph) -> Graph:
        """Return the union of two captures of one model (other branches, other inputs)."""
        united = Graph(self.operations(), self.edges())
        united.fixed = {**other.fixed, **self.fixed}
        united.read_unseen = self.read_unseen | other.read_unseen
        for operation in other.operations():
            if operation.key not in united:
                united.add_operation(operation)
        for edge in other.edges():
            united.add_edge(edge)
        return united

    def __repr__(self) -> str:
        rows = [f"Graph of {len(self)} operations"]
        for operation in self.operations():
            sources = ", ".join(edge.source for edge in self.inputs_of(operation.key))
            rows.append(
                f"  {operation.key}  ({operation.kind})" + (f"  <- {sources}" if sources else "")
            )
        return "\n".join(rows)
