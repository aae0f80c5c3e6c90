# SPDX-License-Identifier: Apache-2.0
"""Binarization as an Algorithm: which convolutions, what data says of them, their controller."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from nncf.algorithms.batchnorm_adaptation.adaptation import adapt
from nncf.algorithms.binarization import BinarizationOptions
from nncf.algorithms.binarization.calibration import calibrations
from nncf.algorithms.binarization.controller import BinarizationController
from nncf.algorithms.binarization.scheme import Binarizer
from nncf.algorithms.weight_placement import PlacedWeight, find_weights, refuse_frozen
from nncf.compression.algorithm import Algorithm, Compressed
from nncf.compression.layout import PRIORITY_BINARIZATION, Insert, Layout, Skip
from nncf.config.structures import QuantizationRangeInitArgs
from nncf.graph.address import Point
from nncf.graph.graph import Graph, Operation

_LOGGER = logging.getLogger("nncf")

CONVOLUTIONS = frozenset(["convolution", "depthwise_convolution"])


class BinarizationAlgorithm(Algorithm):
    """Weights of two values (Rastegari 2016, Zhou 2016), activations of two that are learned."""

    name: ClassVar[str] = "binarization"
    changes_values: ClassVar[bool] = True
    claims_values: ClassVar[bool] = True
    options: BinarizationOptions

    def plan(self, graph: Graph) -> Layout:
        weights, skipped = find_weights(graph, self.name, self.options, self.root)
        chosen = []
        for weight in weights:
            if all(operation.kind.name in CONVOLUTIONS for operation in weight.operations):
                chosen.append(weight)
            else:
                skipped += _skips(weight)
        refuse_frozen(chosen, self.name)
        if not chosen:
            _LOGGER.warning(
                "%s: the model has no convolution that can be binarized; see the list of skipped "
                "operations for the reasons.",
                self.name,
            )
        inserts = [
            insert
            for weight in chosen
            for insert in (self._weight(weight), *self._activations(graph, weight))
        ]
        return Layout(inserts, skipped)

    def _weight(self, weight: PlacedWeight) -> Insert:
        shape = weight.parameter.shape
        per_channel = self.options.mode == "xnor"
        return Insert(
            weight.points,
            Binarizer(self.options.mode, 0 if per_channel else None),
            (shape[0], *(1 for _ in shape[1:])) if per_channel else (1,),
            priority=PRIORITY_BINARIZATION,
            reason=weight.reason,
        )

    def _activations(self, graph: Graph, weight: PlacedWeight) -> Iterator[Insert]:
        """Yield the binarizer of the inputs that a weight is applied to.

        It is one for all calls of a layer, more only where their numbers of channels differ.
        """
        places: dict[tuple[int, int, int], list[Operation]] = {}
        for operation in weight.operations:
            edge = next((e for e in graph.inputs_of(operation.key) if e.input_port == 0), None)
            if edge is not None:
                axes = len(operation.attributes["kernel_size"])
                axis = len(edge.shape) - axes - 1
                places.setdefault((axis, edge.shape[axis], axes), []).append(operation)
        for (axis, channels, axes), operations in places.items():
            yield Insert(
                tuple(Point(operation.key, "input", 0) for operation in operations),
                Binarizer("threshold", axis, self._lr_multiplier),
                (channels, *(1 for _ in range(axes))),
                priority=PRIORITY_BINARIZATION,
                reason=weight.reason.replace("weight", "input", 1),
            )

    @property
    def _lr_multiplier(self) -> float | None:
        own = self.options.compression_lr_multiplier
        top: float | None = self.root.compression_lr_multiplier
        return top if own is None else own

    @staticmethod
    def op_from_state(state: Mapping[str, Any]) -> Binarizer:
        return Binarizer.from_state(state)

    def initialize(self, compressed: Compressed) -> None:
        self._initialize_scales(compressed)
        adapt(
            compressed,
            self.options.initializer.batchnorm_adaptation,
            explicit="batchnorm_adaptation" in self.options.initializer.model_fields_set,
        )

    def _initialize_scales(self, compressed: Compressed) -> None:
        """Take the scales from the registered data; without any, the first training step does."""
        loader, device = None, None
        if compressed.config.has_extra_struct(QuantizationRangeInitArgs):
            found = compressed.config.get_extra_struct(QuantizationRangeInitArgs)
            loader, device = found.data_loader, found.device
        wishes = calibrations(self.options, compressed.layout)
        wanted = any(wish.samples for wish in wishes.values())
        if wanted and (loader is not None or self.options.initializer.range is not None):
            compressed.backend.initialize_ranges(
                compressed.model, compressed.ops, wishes, loader, device
            )
            return
        for name in wishes:
            compressed.ops[name].wait_for_data()
        _LOGGER.info("Scales of binarized activations will be those of the first training step.")

    def control(self, compressed: Compressed) -> BinarizationController:
        def initialize_scales() -> None:
            self._initialize_scales(compressed)
            compressed.backend.agree(compressed.model)

        return BinarizationController(compressed, self.options, initialize_scales)


def _skips(weight: PlacedWeight) -> Sequence[Skip]:
    reason = "only convolutions are binarized"
    return [Skip(str(point), reason) for point in weight.points]
