# SPDX-License-Identifier: Apache-2.0
"""Filter pruning as an Algorithm: find groups, put masks on all that becomes shorter, control."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from nncf.algorithms.filter_pruning.controller import FilterPruningController
from nncf.algorithms.filter_pruning.groups import Grouping, find_groups
from nncf.algorithms.filter_pruning.legr import Coefficients, ranking_coefficients
from nncf.algorithms.filter_pruning.options import FilterPruningOptions
from nncf.algorithms.filter_pruning.scheme import ChannelMask, Fill
from nncf.compression.algorithm import Algorithm, Compressed
from nncf.compression.channel_map import CHANNELS, channel_map
from nncf.compression.layout import PRIORITY_PRUNING, Insert, Layout, Skip
from nncf.errors import ConfigError, ModelError
from nncf.graph.address import Point
from nncf.graph.graph import Graph, Parameter
from nncf.graph.scopes import Scopes

_LOGGER = logging.getLogger("nncf")


class FilterPruningAlgorithm(Algorithm):
    """Structured pruning of channels with their physical removal in strip (Li et al. 2017)."""

    name: ClassVar[str] = "filter_pruning"
    options: FilterPruningOptions

    def __init__(self, options: FilterPruningOptions, root: Any) -> None:
        super().__init__(options, root)
        self._coefficients: Coefficients = {}

    def plan(self, graph: Graph) -> Layout:
        """Return masks for every parameter that a group shortens, and for what must not see them.

        Raises ConfigError when nothing can be pruned, or a layer that is asked for cannot, and
        ModelError for frozen layers.
        """
        grouping = find_groups(graph, self.options, self.root)
        self._check(graph, grouping)
        spared = () if self.options.params.prune_batch_norms else ("batch_norm",)
        inserts = [
            *_parameter_masks(graph, grouping, spared),
            *_activation_masks(graph, grouping),
        ]
        skipped = [
            Skip(key, f"not pruned: {reason}", in_float=False)
            for key, reason in grouping.excluded.items()
        ]
        return Layout(inserts, skipped)

    def _check(self, graph: Graph, grouping: Grouping) -> None:
        self._check_targets(graph, grouping)
        if not grouping.groups:
            reasons = "\n".join(f"  {key}: {why}" for key, why in grouping.excluded.items())
            raise ConfigError(
                "filter_pruning: no layer of the model can lose channels:\n"
                f"{reasons or '  it has no convolutions and no linear layers'}\n"
                "Expected at least one. Change what the options leave alone, or remove the algorithm."
            )
        frozen = [
            parameter.name
            for operation in graph.operations()
            for parameter in operation.parameters
            if not parameter.trainable
            and any(parameter.name == p.parameter for g in grouping for p in g.producers)
        ]
        if frozen:
            raise ModelError(
                f"filter_pruning: {', '.join(dict.fromkeys(frozen))} must be trained after pruning "
                "but is frozen (not trainable). Unfreeze it, or put its layer into "
                "ignored_scopes."
            )

    def _check_targets(self, graph: Graph, grouping: Grouping) -> None:
        """Refuse a target scope of which nothing can be pruned."""
        scopes = Scopes(graph)
        for place, scope in enumerate(self.options.target_scopes or ()):
            found = [key for key in scopes.find(scope) if graph[key].weight is not None]
            if found and all(key in grouping.excluded for key in found):
                raise ConfigError(
                    f'filter_pruning.target_scopes[{place}] "{scope}": {found[0]} cannot lose '
                    f"channels: {grouping.excluded[found[0]]}. Remove the scope, or name a layer "
                    "whose channels stay inside the model."
                )

    @staticmethod
    def op_from_state(state: Mapping[str, Any]) -> ChannelMask:
        return ChannelMask.from_state(state)

    def initialize(self, compressed: Compressed) -> None:
        """Learn, or load, how the filters of different layers compare, where that is wanted."""
        if self.options.params.interlayer_ranking_type == "learned_ranking":
            self._coefficients = ranking_coefficients(compressed, self.control, self.options)

    def control(self, compressed: Compressed) -> FilterPruningController:
        grouping = find_groups(compressed.graph, self.options, self.root)
        channels = channel_map(grouping.channels, compressed.layout)
        compressed.notes[CHANNELS] = channels
        return FilterPruningController(
            compressed, self.options, grouping, channels, coefficients=self._coefficients
        )


def _parameter_masks(graph: Graph, grouping: Grouping, spared: tuple[str, ...]) -> Iterator[Insert]:
    """Yield one mask for each parameter, at all its uses; parameters of ``spared`` kinds keep theirs."""
    axes = grouping.channels.tensor_axes()
    makers = {p.parameter for group in grouping for p in group.producers}
    uses: dict[str, list[Point]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for operation in graph.operations():
        if operation.kind.name in spared:
            continue
        for parameter in operation.parameters:
            point = Point(operation.key, "weight", parameter.port)
            if operation.kind.name == "linear" and parameter.axes is not None:
                yield from _moved_weight(parameter, point, axes.get(parameter.name, {}))
            if parameter.direct and parameter.name in axes:
                uses.setdefault(parameter.name, []).append(point)
                shapes[parameter.name] = parameter.shape
    for name, points in uses.items():
        reason = "its filters are pruned" if name in makers else "it follows pruned filters"
        yield Insert(
            points=tuple(points),
            op=ChannelMask(tuple(sorted(axes[name]))),
            shape=shapes[name],
            priority=PRIORITY_PRUNING,
            reason=reason,
        )


def _moved_weight(parameter: Parameter, point: Point, axes: Mapping[int, Any]) -> Iterator[Insert]:
    """Yield the mask of a weight that an operation takes transposed."""
    places = tuple(k for k, axis in enumerate(parameter.own_axes()) if axis in axes)
    if places:
        yield Insert(
            points=(point,),
            op=ChannelMask(places),
            shape=parameter.shape,
            priority=PRIORITY_PRUNING,
            reason="it follows pruned filters",
        )


def _activation_masks(graph: Graph, grouping: Grouping) -> Iterator[Insert]:
    """Yield what keeps pruned channels out of sums and statistics over channels."""
    for need in dict.fromkeys(grouping.channels.labels.needs):
        edge = next(e for e in graph.inputs_of(need.operation) if e.input_port == need.port)
        axes = grouping.channels.value_axes(edge.source, edge.output_port)
        if need.axis not in axes:
            continue
        fill: Fill = "zero"
        if need.kind != "zero":
            fill = need.kind  # type: ignore[assignment]  # just compared
        yield Insert(
            points=(Point(need.operation, "input", need.port),),
            op=ChannelMask((need.axis,), fill),
            shape=edge.shape,
            priority=PRIORITY_PRUNING,
            reason="pruned channels must not count here",
        )
