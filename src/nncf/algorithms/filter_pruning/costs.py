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
from nncf.graph.graph import Graph, Parameter
from nncf.graph.multiplications import counted_operations, positions, samples_in


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
        samples = samples_in(graph)
        self._operations = [
            (
                positions(operation) / samples,
                operation.parameters[0],
                _units_along(operation.parameters[0], axes),
            )
            for operation in counted_operations(graph)
        ]
        self._filters = [
            channels.units_of(producer.ids)
            for producer in channels.labels.producers
            if (channels.units_of(producer.ids) >= 0).any()
        ]

    def cost(self, kept: Kept) -> Cost:
        """Return what is left when only ``kept`` units are."""
        flops = 2.0 * sum(
            times * _size(parameter.shape, list(axes.items()), kept)
            for times, parameter, axes in self._operations
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
