# SPDX-License-Identifier: Apache-2.0
"""Where activation quantizers come to stand.

Every operation that is to run on integers demands quantized inputs. Demands move up the graph,
against the flow of data, past operations that only move values, so that branches meet and
share one quantizer. A demand stops

* below the operation that computes the tensor, a model input, or an ignored operation;
* at a branch, where another reader of the tensor needs it in floating point, or where the
  demands of the readers have no scheme in common;
* below an operation past which its ranges per channel would lose their meaning.

At a concat the demand goes on to every input; all these share one range when the result
reaches a convolution or linear layer, because only then can integers be concatenated as they
are. The graph is walked once from its end to its start, so the cost is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import networkx

from nncf.algorithms.quantization.demands import (
    Cause,
    Demand,
    Groups,
    Site,
    merge,
    only_per_tensor,
    partition,
)
from nncf.algorithms.quantization.roles import Roles
from nncf.algorithms.quantization.traits import (
    EMBEDDINGS,
    MULTIPLIES,
    is_scalar,
    keeps_channels,
    quantized_ports,
)
from nncf.graph.graph import Edge, Graph, Operation
from nncf.graph.patterns import Tensor

_Need = Demand | bool
"""What a reader wants of a tensor: a Demand, True for floating point, False for either."""

_FLOAT, _EITHER = True, False


@dataclass
class Propagation:
    """The outcome: sites for quantizers in order of execution, and excuses where there is none.

    ``excuses`` maps operations whose demand was given up to the reason.
    """

    sites: list[Site] = field(default_factory=list)
    groups: Groups = field(default_factory=Groups)
    excuses: dict[str, str] = field(default_factory=dict)


def execution_order(graph: Graph) -> list[str]:
    """Return keys so that producers precede readers, otherwise in order of execution.

    Graphs united from several captures may list them otherwise; one with a cycle (a state
    carried through time) keeps its order.
    """
    place = {operation.key: number for number, operation in enumerate(graph.operations())}
    if all(place[edge.source] < place[edge.target] for edge in graph.edges()):
        return list(place)
    try:
        return list(networkx.lexicographical_topological_sort(graph.network, key=place.get))
    except networkx.NetworkXUnfeasible:
        return list(place)


def propagate(roles: Roles, *, quantize_inputs: bool, quantize_outputs: bool) -> Propagation:
    """Return where quantizers of activations stand in the graph of ``roles``."""
    walker = _Walker(roles, quantize_inputs=quantize_inputs, quantize_outputs=quantize_outputs)
    return walker.run()


class _Walker:
    def __init__(self, roles: Roles, *, quantize_inputs: bool, quantize_outputs: bool) -> None:
        self.roles = roles
        self.graph = roles.graph
        self.quantize_inputs = quantize_inputs
        self.quantize_outputs = quantize_outputs
        self.order = execution_order(roles.graph)
        self.found = Propagation()
        self.incoming: dict[str, list[Edge]] = {key: [] for key in self.order}
        self.readers: dict[str, dict[int, list[Edge]]] = {key: {} for key in self.order}
        for edge in roles.graph.edges():
            self.incoming[edge.target].append(edge)
            self.readers[edge.source].setdefault(edge.output_port, []).append(edge)
        self.needs: dict[Edge, _Need] = {}
        self.reaches_layer: set[str] = set()
        self.user_groups: dict[int, int] = {}

    def run(self) -> Propagation:
        for key in reversed(self.order):
            operation = self.graph[key]
            needs = {port: self._settle((key, port)) for port in sorted(self.readers[key])}
            if self._passes(operation):
                self._note_reach(key)
                self._pass_up(operation, needs)
            else:
                for port, need in needs.items():
                    self._stop((key, port), need)
                self._ask(operation)
        self.found.sites.reverse()
        return self.found

    # what each reader wants ----------------------------------------------------------------

    def _passes(self, operation: Operation) -> bool:
        return (
            self.roles.trait(operation.key).behaviour == "passes"
            and operation.unreached is None
            and not self.roles.is_member(operation.key)
        )

    def _ask(self, operation: Operation) -> None:
        """Set the needs of an operation that computes something at its inputs."""
        key = operation.key
        if operation.kind.name == "output":
            self._ask_output(operation)
            return
        excuse = self.roles.excuse(operation)
        if excuse is None:
            self._demand(operation)
            return
        indifferent = self.roles.is_member(key) and operation.unreached is None
        ignored = self.roles.activation_selection.excuse(operation) is not None
        for edge in self.incoming[key]:
            self.needs[edge] = _EITHER if indifferent and not ignored else _FLOAT
        if not indifferent and self.roles.fusion.label(key):
            self._free_inside(key)

    def _free_inside(self, key: str) -> None:
        """Tensors between the operations of a composite need nothing."""
        unit = self.roles.fusion.unit_of
        for edge in self.incoming[key]:
            if unit[edge.source] == unit[key]:
                self.needs[edge] = _EITHER

    def _ask_output(self, operation: Operation) -> None:
        for edge in self.incoming[operation.key]:
            self.needs[edge] = _FLOAT
            if self.quantize_outputs and edge.dtype == "float":
                schemes = self.roles.activations.schemes(operation.key, None)
                self.needs[edge] = Demand(schemes, Cause(f"model output {operation.key}"))

    def _demand(self, operation: Operation) -> None:
        key = operation.key
        trait = self.roles.trait(key)
        schemes = self.roles.activations.schemes(key, trait.activations)
        group = self._group_of(operation)
        if group is not None:
            schemes = only_per_tensor(schemes) or schemes
        ports = quantized_ports(operation)
        unit = self.roles.fusion.unit_of
        demand = Demand(schemes, Cause(f"input of {operation.kind} {key}"), group)
        asked = 0
        for edge in self.incoming[key]:
            inside = unit[edge.source] == unit[key]
            if edge.input_port not in ports or inside or not self._quantizable(edge, operation):
                self.needs[edge] = _EITHER
            else:
                self.needs[edge] = demand
                asked += 1
        if not asked and self.roles.fusion.label(key) is None:
            self.found.excuses[key] = "none of its inputs is an activation in floating point"

    def _quantizable(self, edge: Edge, operation: Operation) -> bool:
        if edge.dtype != "float" or is_scalar(edge):
            return False
        # Masks and tables of constants are no activations, unless a layer multiplies them.
        return edge.source not in self.roles.constants or operation.kind.name in MULTIPLIES

    def _group_of(self, operation: Operation) -> int | None:
        number = self.roles.unified.get(operation.key)
        if number is not None:
            if number not in self.user_groups:
                self.user_groups[number] = self.found.groups.new()
            return self.user_groups[number]
        several = len(self.incoming[operation.key]) > 1
        unified = self.roles.trait(operation.key).unified
        return self.found.groups.new() if unified and several else None

    # branches ------------------------------------------------------------------------------

    def _settle(self, tensor: Tensor) -> _Need:
        """Return the joint need of a tensor's readers; place quantizers for some where it is float.

        A Demand as result means that one quantizer may serve all readers.
        """
        edges = self.readers[tensor[0]][tensor[1]]
        needs = [(edge, self.needs.get(edge, _FLOAT)) for edge in edges if edge.dtype == "float"]
        demands = [(edge, need) for edge, need in needs if isinstance(need, Demand)]
        in_float = any(need is _FLOAT for _, need in needs)
        if not demands:
            return _FLOAT if in_float else _EITHER
        if tensor[0] in self.roles.blocked:
            self._give_up(demands, f"its input stays in float: {self.roles.blocked[tensor[0]]}")
            return _FLOAT
        merged = None if in_float else merge([need for _, need in demands], self.found.groups)
        if merged is None:
            self._place_parts(tensor, demands)
            return _FLOAT
        return merged

    def _give_up(self, demands: Sequence[tuple[Edge, Demand]], reason: str) -> None:
        for edge, _ in demands:
            self.found.excuses[edge.target] = reason

    def _place_parts(self, tensor: Tensor, demands: list[tuple[Edge, Demand]]) -> None:
        for part in reversed(partition(demands, self.found.groups)):
            merged = merge([demands[position][1] for position in part], self.found.groups)
            assert merged is not None  # the parts were made mergeable
            edges = tuple(demands[position][0] for position in part)
            self._place(Site(tensor, edges, merged, whole=False))

    def _stop(self, tensor: Tensor, need: _Need) -> None:
        if isinstance(need, Demand):
            edges = tuple(e for e in self.readers[tensor[0]][tensor[1]] if e.dtype == "float")
            self._place(Site(tensor, edges, need, whole=True))

    def _place(self, site: Site) -> None:
        source = self.graph[site.tensor[0]]
        if source.kind.name == "input" and not self.quantize_inputs:
            for edge in site.edges:
                if isinstance(self.needs.get(edge), Demand):
                    reason = f"its input is the model's {source.key} and quantize_inputs is false"
                    self.found.excuses[edge.target] = reason
            return
        self.found.sites.append(site)

    # moving up -----------------------------------------------------------------------------

    def _note_reach(self, key: str) -> None:
        """Note whether a convolution or linear layer is found below, past moving operations."""
        for edges in self.readers[key].values():
            for edge in edges:
                below = self.graph[edge.target]
                if (
                    below.weight is not None and below.kind.name not in EMBEDDINGS
                ) or edge.target in self.reaches_layer:
                    self.reaches_layer.add(key)

    def _pass_up(self, operation: Operation, needs: dict[int, _Need]) -> None:
        """Move the demands on the outputs to the inputs, or leave them at the outputs."""
        demands = {port: need for port, need in needs.items() if isinstance(need, Demand)}
        edges = self._movable_inputs(operation)
        joint = None
        if demands and edges and not any(need is _FLOAT for need in needs.values()):
            joint = merge(list(demands.values()), self.found.groups)
        if joint is not None:
            joint = joint.through(operation.key, per_tensor=not keeps_channels(operation))
        if joint is not None and joint.schemes:
            self._hand_up(operation, joint, several=len(edges) > 1)
            return
        for port, need in demands.items():
            self._stop((operation.key, port), need)
        idle = not any(need is _FLOAT for need in needs.values()) and not demands
        for edge in self.incoming[operation.key]:
            self.needs[edge] = _EITHER if idle else _FLOAT

    def _movable_inputs(self, operation: Operation) -> list[Edge]:
        """Return the inputs that demands may move to; none when they must stay below."""
        edges = [e for e in self.incoming[operation.key] if e.dtype == "float"]
        several = operation.kind.name == "concat" or len(edges) > 1
        # A part that comes from a parameter or a constant would escape quantization.
        escapes = bool(operation.parameters) or any(e.source in self.roles.constants for e in edges)
        if several and operation.kind.name == "concat":
            ports = {edge.input_port for edge in self.incoming[operation.key]}
            escapes = escapes or ports != set(range(len(ports)))
        blocked = any(edge.source in self.roles.blocked for edge in edges)
        blocked = blocked or operation.key in self.roles.blocked
        return [] if blocked or (several and escapes) else edges

    def _hand_up(self, operation: Operation, demand: Demand, *, several: bool) -> None:
        if several and operation.kind.name == "concat" and operation.key in self.reaches_layer:
            group = self.found.groups.join((demand.group, self.found.groups.new()))
            demand = replace(demand, group=group)
        for edge in self.incoming[operation.key]:
            self.needs[edge] = demand if edge.dtype == "float" else _EITHER
