# SPDX-License-Identifier: Apache-2.0
"""Quantization as an Algorithm: plan quantizers, set their ranges, control them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from nncf.algorithms.batchnorm_adaptation.adaptation import adapt
from nncf.algorithms.quantization.adaptive import AdaptiveWidths, WidthPlan
from nncf.algorithms.quantization.controller import QuantizationController
from nncf.algorithms.quantization.options import QuantizationOptions
from nncf.algorithms.quantization.placement import Placement, place
from nncf.algorithms.quantization.precision import given_by_scope, open_widths
from nncf.algorithms.quantization.ranges import calibrations
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.search import Search
from nncf.compression.algorithm import Algorithm, Compressed, Given
from nncf.compression.layout import Layout
from nncf.config.structures import QuantizationRangeInitArgs
from nncf.graph.graph import Graph
from nncf.graph.scopes import Scopes


class QuantizationAlgorithm(Algorithm):
    """Uniform quantization-aware training with learned ranges (Jacob et al. 2018, Esser 2020)."""

    name: ClassVar[str] = "quantization"
    changes_values: ClassVar[bool] = True
    options: QuantizationOptions

    def __init__(self, options: QuantizationOptions, root: Any) -> None:
        super().__init__(options, root)
        self._placement: Placement | None = None

    def plan(self, graph: Graph) -> Layout:
        placement = self._placement = self._place(graph)
        layout = placement.layout
        precision = self.options.initializer.precision
        if precision is not None and precision.type == "manual":
            layout = given_by_scope(placement, self.options, graph, self.root.target_device)
        if self.options.is_adaptive:
            widths = self._width_plan(placement, graph, layout)
            layout = widths.layout(widths.widest(), layout)
        placement.check(layout)
        return self._with_pace(layout)

    def refine(self, given: Given) -> Layout:
        """Return the layout with the bit widths that ``initializer.precision`` searches for."""
        precision = self.options.initializer.precision
        if precision is None or precision.type == "manual":
            return given.layout
        assert self._placement is not None  # plan came first, on a graph that knows other claims
        search = Search(
            *(self._placement, precision, given),
            initialize=self.initialize,
            initialize_weights=self._initialize_weight_ranges,
        )
        return self._with_pace(search.run())

    def _place(self, graph: Graph) -> Placement:
        return place(
            graph,
            self.options,
            target_device=self.root.target_device,
            ignored=list(self.root.ignored_scopes),
            target=None if self.root.target_scopes is None else list(self.root.target_scopes),
            open_widths=open_widths(self.options),
        )

    def _width_plan(self, placement: Placement, graph: Graph, layout: Layout) -> WidthPlan:
        return WidthPlan(
            *(placement, self.options, graph),
            names=[insert.name for insert in layout],
            device=self.root.target_device,
            pace=self._with_pace,
        )

    def _with_pace(self, layout: Layout) -> Layout:
        multiplier = self.options.compression_lr_multiplier
        if multiplier is None:
            multiplier = self.root.compression_lr_multiplier
        inserts = [replace(insert, op=_learning(insert.op, multiplier)) for insert in layout]
        return Layout(inserts, layout.skipped)

    @staticmethod
    def op_from_state(state: Mapping[str, Any]) -> Scheme:
        return Scheme.from_state(state)

    def initialize(self, compressed: Compressed) -> None:
        self._initialize_ranges(compressed)
        adapt(
            compressed,
            self.options.initializer.batchnorm_adaptation,
            explicit="batchnorm_adaptation" in self.options.initializer.model_fields_set,
        )

    def _initialize_weight_ranges(self, compressed: Compressed) -> None:
        self._initialize_ranges(compressed, {i.name for i in compressed.layout if i.op.weight})

    def _initialize_ranges(
        self, compressed: Compressed, names: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Set the ranges of all quantizers, or of those named; return the names of those unseen."""
        loader, device = None, None
        if compressed.config.has_extra_struct(QuantizationRangeInitArgs):
            found = compressed.config.get_extra_struct(QuantizationRangeInitArgs)
            loader, device = found.data_loader, found.device
        wishes = calibrations(self.options, compressed.layout, Scopes(compressed.graph))
        if names is not None:
            wishes = {name: wish for name, wish in wishes.items() if name in names}
        unseen: tuple[str, ...] = compressed.backend.initialize_ranges(
            compressed.model,
            compressed.ops,
            wishes,
            loader,
            device,
            parameters=compressed.direct_parameters,
        )
        return unseen

    def control(self, compressed: Compressed) -> QuantizationController:
        widths = None
        if self.options.is_adaptive:
            placement = self._placement or self._place(compressed.graph)
            plan = self._width_plan(placement, compressed.graph, compressed.layout)
            widths = AdaptiveWidths(plan, compressed, self._initialize_ranges)
        return QuantizationController(compressed, self.options, self._initialize_ranges, widths)


def _learning(scheme: Scheme, multiplier: float | None) -> Scheme:
    """Return the scheme with the pace at which its range learns."""
    scaled = scheme.has_few_bits and not scheme.logarithm_scale
    return replace(scheme, lr_multiplier=multiplier, scaled_gradient=scaled)
