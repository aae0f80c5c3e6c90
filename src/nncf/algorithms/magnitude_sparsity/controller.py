# SPDX-License-Identifier: Apache-2.0
"""The controller of magnitude sparsity: sets levels, by the schedule or by hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from nncf.algorithms.batchnorm_adaptation.adaptation import adapt
from nncf.algorithms.magnitude_sparsity.levels import Pool, matched_overrides, pools_at
from nncf.algorithms.magnitude_sparsity.options import MagnitudeSparsityOptions
from nncf.algorithms.magnitude_sparsity.statistics import (
    LayerThreshold,
    MagnitudeSparsityStatistics,
)
from nncf.algorithms.sparsity_controller import (
    SparsityController,
    checked_level,
    damaged,
    layer_names,
    masks_at,
    mean_level,
    model_statistics,
)
from nncf.algorithms.sparsity_schedulers import make_scheduler
from nncf.algorithms.weight_placement import parameter_names
from nncf.compression.algorithm import Compressed
from nncf.compression.statistics import Statistics

_LOGGER = logging.getLogger("nncf")


class MagnitudeSparsityController(SparsityController):
    """Holds the masks of a model; each level that is set chooses them anew, until frozen.

    ``levels`` are the levels that the layers were given last, by Insert name, and
    ``thresholds`` the importances up to which their weights were dropped.
    """

    name = "magnitude_sparsity"

    def __init__(self, compressed: Compressed, options: MagnitudeSparsityOptions) -> None:
        super().__init__(options.params, options.sparsity_init)
        self._compressed = compressed
        self._options = options
        self._overrides = matched_overrides(options, compressed.layout, compressed.graph)
        self._parameters = parameter_names(compressed.layout, compressed.graph)
        self.masks = dict(compressed.ops)
        self.levels = dict.fromkeys(self.masks, options.sparsity_init)
        self.thresholds = dict.fromkeys(self.masks, 0.0)
        self.scheduler = make_scheduler(self, options.params, initial_level=options.sparsity_init)

    def set_sparsity_level(
        self,
        level: float,
        target: str | Sequence[str] | None = None,
        run_batchnorm_adaptation: bool = False,
    ) -> None:
        """Choose the masks anew so that a share ``level`` of the weights is dropped.

        ``target``, a scope or several, restricts it to their layers, together. Without it all
        layers share the level; with local levels each of them has it on its own, and
        ``scope_overrides`` keep to theirs. ``run_batchnorm_adaptation`` refreshes batch norm
        statistics afterwards, with the registered data.

        Raises LevelError for a level out of reach, ScopeNotFound, and DataError without data.
        """
        level = self._checked(level)
        names = None if target is None else tuple(masks_at(self._compressed, target))
        if self.frozen:
            _LOGGER.warning(
                "The masks are frozen: level %g is not applied. Call freeze(False) first.", level
            )
        elif names is not None:
            self._choose([Pool(names, level)])
        else:
            self._choose(self._pools(level))
            self.sparsity_level = level
        if run_batchnorm_adaptation:
            section = self._options.initializer.batchnorm_adaptation
            adapt(self._compressed, section, explicit=True)
            self._compressed.backend.agree(self._compressed.model)

    def _checked(self, level: float) -> float:
        pattern = self._options.params.pattern
        limit = f", which the pattern {pattern} leaves" if pattern else ""
        return checked_level(level, maximum=self._options.params.pattern_level, limit=limit)

    def _pools(self, level: float) -> list[Pool]:
        names = tuple(self.masks)
        if self.is_local:
            return [Pool((name,), level) for name in names]
        return pools_at(level, self._options, names, self._overrides)

    def _choose(self, pools: list[Pool]) -> None:
        importance = self._options.params.weight_importance
        for pool in pools:
            masks = [self.masks[name] for name in pool.names]
            weights = [self._compressed.parameter(self._parameters[name]) for name in pool.names]
            threshold = masks[0].choose(masks, weights, pool.level, importance=importance)
            self.levels.update(dict.fromkeys(pool.names, pool.level))
            self.thresholds.update(dict.fromkeys(pool.names, threshold))

    @property
    def compression_rate(self) -> float | None:
        """Share of zeros in all parameters of the model, those without masks included.

        A rate that is set becomes the level of the layers with masks, and the masks are frozen.
        """
        return self._collect().model_statistics.sparsity_level

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        rate = self._checked(rate)
        self.freeze(False)
        self.set_sparsity_level(rate)
        self.freeze()

    @property
    def maximal_compression_rate(self) -> float:
        return self._options.params.pattern_level

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:  # noqa: ARG002  # all are quick
        return Statistics(**{self.name: self._collect()})

    def _collect(self) -> MagnitudeSparsityStatistics:
        found = model_statistics(self._compressed, self._parameters)
        layout = self._compressed.layout
        thresholds = zip(layer_names(layout), self.thresholds.values(), strict=True)
        return MagnitudeSparsityStatistics(
            model_statistics=found,
            thresholds=tuple(LayerThreshold(*item) for item in thresholds),
            target_sparsity_level=mean_level(self.levels, layout),
        )

    def get_state(self) -> dict[str, Any]:
        own = {"levels": dict(self.levels), "thresholds": dict(self.thresholds)}
        return {**super().get_state(), **own}

    def load_state(self, state: Mapping[str, Any]) -> None:
        try:
            levels = {name: float(state["levels"][name]) for name in self.masks}
            thresholds = {name: float(state["thresholds"][name]) for name in self.masks}
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.name, "levels and thresholds", error) from error
        self.levels, self.thresholds = levels, thresholds
        super().load_state(state)
