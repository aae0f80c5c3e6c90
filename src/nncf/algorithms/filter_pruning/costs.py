# SPDX-License-Identifier: Apache-2.0
"""What a model costs when some of its channels are gone: operations, parameters, filters.

A multiply-accumulate counts as two operations (FLOPs). Counted are convolutions and linear
layers for one sample; what the others do is small beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nncf.compression.channel_map import Kept, count
from nncf.graph.channels import Channels, Ids
from nncf.graph.graph import Graph, Operation, Parameter

_COUNTED = frozenset(["convolution", "depthwise_convolution", "transposed_convolution", "linear"])


@dataclass(frozen=True)
class Cost:
    """FLOPs, parameters and filters of prunable layers."""

    flops: float
    parameters: int
    filters: int


class CostModel:
    """Counts the cost of a graph's model for any choice of kept units."""

    def __init__(
        self, graph: Graph, channels: Channels, sizes: Mapping[str, tuple[int, ...]]
    ) -> None:
        axes = channels.tensor_axes()
        self._tensors = [(shape, list(axes.get(name, {}).items())) for name, shape in sizes.items()]
        batch = _batch(graph)
        self._operations = [
            (
                _positions(operation) / batch,
                operation.parameters[0],
                _units_along(operation.parameters[0], axes),
            )
            for operation in graph.operations(*_COUNTED)
            if operation.parameters and operation.attributes.get("output_shapes")
        ]
        self._filters = [
            channels.units_of(producer.ids)
            for producer in channels.labels.producers
            if (channels.units_of(producer.ids) >= 0).any()
        ]

    def cost(self, kept: Kept) -> Cost:
        """Return what is left when only ``kept`` units are."""
        flops = 2.0 * sum(
            positions * _size(parameter.shape, list(axes.items()), kept)
            for positions, parameter, axes in self._operations
        )
        parameters = sum(int(_size(shape, axes, kept)) for shape, axes in self._tensors)
        return Cost(flops, parameters, sum(count(units, kept) for units in self._filters))


def _units_along(parameter: Parameter, axes: Mapping[str, Mapping[int, Ids]]) -> dict[int, Ids]:
    """Return the units along the axes of the tensor that enters, the parameter or a view of it."""
    own = axes.get(parameter.name, {})
    return {place: own[axis] for place, axis in enumerate(parameter.own_axes()) if axis in own}


def _size(shape: tuple[int, ...], axes: list[tuple[int, Ids]], kept: Kept) -> float:
    lengths = list(shape)
    for axis, units in axes:
        lengths[axis] = count(units, kept)
    return float(np.prod(lengths, dtype=float))


def _positions(operation: Operation) -> float:
    """Return how often the whole weight is applied: at every output position."""
    shape = operation.attributes["output_shapes"][0]
    if operation.kind.name == "linear":
        return float(np.prod(shape[:-1], dtype=float))
    rank = len(operation.attributes["kernel_size"])
    if operation.kind.name == "transposed_convolution":
        shape = operation.attributes["input_shapes"][0]
    leading = shape[: len(shape) - rank - 1]
    return float(np.prod((*leading, *shape[len(shape) - rank :]), dtype=float))


def _batch(graph: Graph) -> int:
    """Return how many samples the graph was captured with: the first axis of the first input."""
    for operation in graph.operations("input"):
        for edge in graph.outputs_of(operation.key):
            return edge.shape[0] if edge.shape else 1
    return 1
