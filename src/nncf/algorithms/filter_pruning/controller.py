# SPDX-License-Identifier: Apache-2.0
"""The controller of filter pruning: sets levels, chooses filters, counts what is left."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from nncf.algorithms.batchnorm_adaptation.adaptation import adapt
from nncf.algorithms.filter_pruning.costs import Cost, CostModel
from nncf.algorithms.filter_pruning.groups import Grouping, Limit, PruningGroup
from nncf.algorithms.filter_pruning.options import FilterPruningOptions
from nncf.algorithms.filter_pruning.schedule import PruningScheduler, target_of
from nncf.algorithms.filter_pruning.selection import Importances, Selection, least
from nncf.algorithms.filter_pruning.statistics import (
    FilterPruningStatistics,
    PrunedLayer,
    PrunedModelStatistics,
)
from nncf.compression.algorithm import Compressed
from nncf.compression.channel_map import ChannelMap, Kept, count
from nncf.compression.controller import Controller
from nncf.compression.stage import CompressionStage
from nncf.compression.statistics import Statistics
from nncf.errors import CheckpointError, ConfigError

_LOGGER = logging.getLogger("nncf")

_NEAR = 1e-5
_FINENESS = 200
"""Levels between 0 and 1 that are tried to meet a share of FLOPs."""


class FilterPruningController(Controller):
    """Holds the masks of a model's channels.

    A level is a share of filters, or of FLOPs with ``pruning_flops_target``. What is kept of a
    layer is a multiple of ``channel_multiple``, so the share that is really gone may be lower.
    ``groups`` prints what hangs together.
    """

    name = "filter_pruning"

    def __init__(
        self,
        compressed: Compressed,
        options: FilterPruningOptions,
        grouping: Grouping,
        channels: ChannelMap,
        *,
        coefficients: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.groups = grouping
        self.frozen = False
        self.coefficients = dict(coefficients or {})
        self._compressed = compressed
        self._options = options
        self._channels = channels
        self._level = 0.0
        self.prune_flops = options.params.pruning_flops_target is not None
        self._check_target()
        self.scheduler = PruningScheduler(self, options)

    # --- levels ----------------------------------------------------------------------------------

    @property
    def pruning_level(self) -> float:
        """Share of filters of prunable layers that is gone now."""
        return self._filters_gone(self.kept)

    @property
    def current_groupwise_pruning_level(self) -> dict[int, float]:
        """By number of a group, the share of its channels that is gone now."""
        kept = self.kept
        return {g.number: 1 - float(kept[g.units].mean()) for g in self.groups}

    def set_pruning_level(
        self,
        pruning_level: float | Mapping[int, float],
        run_batchnorm_adaptation: bool = False,
    ) -> None:
        """Prune to a level; frozen masks stay, with a warning.

        A mapping gives levels (shares of channels) to groups by number; groups without one are
        left whole. With ``run_batchnorm_adaptation`` batch norm statistics are measured anew.

        Raises ConfigError for a level that cannot be reached, and DataError without data for batch
        norms; nothing has changed then.
        """
        if self.frozen:
            _LOGGER.warning(
                "The masks are frozen: level %s is not applied. Call freeze(False) first.",
                pruning_level,
            )
            return
        before = self.kept, self._level
        kept = self._chosen(pruning_level)
        is_mapping = isinstance(pruning_level, Mapping)
        self._set(kept, self._filters_gone(kept) if is_mapping else float(pruning_level))
        if run_batchnorm_adaptation:
            try:
                section = self._options.initializer
                adapt(self._compressed, section.batchnorm_adaptation, explicit=True)
                self._compressed.backend.agree(self._compressed.model)
            except BaseException:
                self._set(*before)
                raise

    def _set(self, kept: Kept, level: float) -> None:
        self._compressed.home.set_masks(self._compressed.ops, self._channels.masks, kept)
        self._level = level

    def freeze(self, frozen: bool = True) -> None:
        """Keep the masks as they are from now on."""
        self.frozen = frozen

    @property
    def kept(self) -> Kept:
        """For each unit whether it is kept, as the masks in the model say."""
        return self._channels.kept_units(self._compressed.ops)

    # --- choosing --------------------------------------------------------------------------------

    @cached_property
    def _costs(self) -> CostModel:
        return CostModel(
            self._compressed.graph, self.groups.channels, self._compressed.parameter_shapes
        )

    @cached_property
    def _full(self) -> Cost:
        return self._costs.cost(np.ones(self._channels.units, dtype=bool))

    def _chosen(self, level: float | Mapping[int, float]) -> Kept:
        if isinstance(level, Mapping):
            return self._chosen_by_group(level)
        if not 0 <= level <= 1:
            raise ConfigError(
                f"set_pruning_level: {level!r} is no level. Expected a number from 0 to 1."
            )
        if level == 0:
            return np.ones(self._channels.units, dtype=bool)
        selection = self._selection()
        ranked = self._options.params.all_weights
        if not self.prune_flops:
            return self._ranked_to(selection, level) if ranked else self._uniform(selection, level)
        steps = selection.total() if ranked else _FINENESS

        def kept_at(step: int) -> Kept:
            return selection.ranked(step) if ranked else self._uniform(selection, step / steps)

        step = least(0, steps, lambda step: self._flops_gone(kept_at(step)) >= level - _NEAR)
        if step is None:
            raise self._out_of_reach(level, self._flops_gone(kept_at(steps)))
        return kept_at(step)

    def _selection(self) -> Selection:
        return self._selection_by(self.importances)

    def _selection_by(self, importances: Importances) -> Selection:
        return Selection(
            self.groups.groups,
            importances,
            units=self._channels.units,
            multiple=self._options.params.channel_multiple,
            limits=self._limits,
        )

    @cached_property
    def _limits(self) -> tuple[Limit, ...]:
        return self.groups.limits(self._options.params.channel_multiple)

    def _uniform(self, selection: Selection, level: float) -> Kept:
        return selection.uniform({group.number: level for group in self.groups})

    def _chosen_by_group(self, levels: Mapping[int, float]) -> Kept:
        if self._options.params.all_weights:
            raise ConfigError(
                "set_pruning_level: levels of single groups do not go with all_weights, which ranks "
                "all filters together. Give one level, or set all_weights to false."
            )
        known = {group.number for group in self.groups}
        wrong = [key for key, level in levels.items() if key not in known or not 0 <= level <= 1]
        if wrong:
            raise ConfigError(
                f"set_pruning_level: {wrong[0]!r}: {levels[wrong[0]]!r} is no level of a group. "
                f"Expected groups 0 to {max(known)} and levels from 0 to 1."
            )
        return self._selection().uniform(levels)

    def _ranked_to(self, selection: Selection, level: float) -> Kept:
        def gone(removed: int) -> float:
            return self._filters_gone(selection.ranked(removed))

        removed = least(0, selection.total(), lambda removed: gone(removed) >= level - _NEAR)
        if removed is None:
            raise self._out_of_reach(level, gone(selection.total()))
        return selection.ranked(removed)

    def _filters_gone(self, kept: Kept) -> float:
        return 1 - self._costs.cost(kept).filters / self._full.filters

    def _flops_gone(self, kept: Kept) -> float:
        return 1 - self._costs.cost(kept).flops / self._full.flops

    @property
    def importances(self) -> Importances:
        """By number of a group, the mean importance of each unit over the layers that have it."""
        return {group.number: self._importance(group) for group in self.groups}

    def _importance(self, group: PruningGroup) -> Any:
        params = self._options.params
        total, filters = np.zeros((2, self._channels.units))
        for producer in {p.parameter: p for p in group.producers}.values():
            found = self._compressed.home.filter_importance(
                self._compressed.parameter(producer.parameter),
                producer,
                params.filter_importance,
                normalized=params.all_weights,
            )
            units = self.groups.channels.units_of(producer.ids)
            np.add.at(total, units[units >= 0], found[units >= 0])
            np.add.at(filters, units[units >= 0], 1)
        found = total[group.units] / filters[group.units]
        if params.all_weights:
            # Relative to the group's mean, as in G. Fang et al. 2023 (arXiv:2301.12900): else
            # layers with many filters, each a smaller part of the norm, would lose nearly all.
            found = found / max(found.mean(), 1e-12)
        scale, shift = self.coefficients.get(group.key, (1.0, 0.0))
        return scale * found + shift

    # --- limits ----------------------------------------------------------------------------------

    @cached_property
    def _unranked(self) -> Selection:
        """All filters equally important: how many are kept does not depend on the ranking."""
        return self._selection_by({g.number: np.zeros(len(g.units)) for g in self.groups})

    @cached_property
    def _least_kept(self) -> Kept:
        """What is left when as much as possible is gone."""
        return self._uniform(self._unranked, 1.0)

    def _out_of_reach(self, level: float, most: float) -> ConfigError:
        what = "FLOPs" if self.prune_flops else "filters of prunable layers"
        multiple = self._options.params.channel_multiple
        limiting = [
            f"{group.name} keeps {count(self.groups.channels.units_of(group.producers[0].ids), self._least_kept)}"
            f" of {group.channels}"
            for group in sorted(self.groups, key=lambda group: -len(group.units))
        ]
        whole = list(self.groups.excluded)
        return ConfigError(
            f"filter_pruning: {level:.3f} of the {what} cannot be removed, {most:.3f} is the most. "
            f"Each layer keeps a multiple of {multiple} channels: {'; '.join(limiting[:5])}"
            + (f"; not pruned at all: {', '.join(whole[:5])}" if whole else "")
            + ". Lower the target, lower channel_multiple, or let more layers be pruned."
        )

    def _check_target(self) -> None:
        """Raise ConfigError for a target out of reach, and warn of one that removes nothing."""
        target = target_of(self._options)
        most = 0.0 if self._least_kept.all() else self.maximal_compression_rate
        if target > most + _NEAR:
            raise self._out_of_reach(target, most)
        params = self._options.params
        is_uniform = not (self.prune_flops or params.all_weights)
        if target > 0 and is_uniform and self._uniform(self._unranked, target).all():
            _LOGGER.warning(
                "filter_pruning: pruning_target %g removes no filter at all, since every layer keeps "
                "a multiple of %d channels. Raise the target, or lower channel_multiple.",
                target,
                params.channel_multiple,
            )

    @property
    def maximal_compression_rate(self) -> float:
        """The greatest level that can be set, of FLOPs or of filters."""
        least_cost = self._costs.cost(self._least_kept)
        if self.prune_flops:
            return 1 - least_cost.flops / self._full.flops
        return (
            1.0
            if not self._options.params.all_weights
            else (1 - least_cost.filters / self._full.filters)
        )

    @property
    def compression_rate(self) -> float:
        """Share of FLOPs or filters that is gone; setting it prunes and freezes."""
        return self._flops_gone(self.kept) if self.prune_flops else self._level

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        was, self.frozen = self.frozen, False
        try:
            self.set_pruning_level(rate)
        except BaseException:
            self.frozen = was
            raise
        self.frozen = True

    # --- what the training loop sees -------------------------------------------------------------

    @property
    def level(self) -> float:
        return self._level

    def compression_stage(self) -> CompressionStage:
        if not self.scheduler_enabled:
            return CompressionStage.FULLY_COMPRESSED
        if self._level == 0:
            return CompressionStage.UNCOMPRESSED
        if self._level >= target_of(self._options) - _NEAR:
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:  # noqa: ARG002  # all are quick
        kept = self.kept
        model = PrunedModelStatistics(self._full, self._costs.cost(kept), self._layers(kept))
        level = model.flops_pruning_level if self.prune_flops else model.filter_pruning_level
        asked = self._level
        return Statistics(
            filter_pruning=FilterPruningStatistics(model, level, asked, self.prune_flops)
        )

    def _layers(self, kept: Kept) -> list[PrunedLayer]:
        graph, found = self._compressed.graph, []
        for group in self.groups:
            for producer in {p.operation: p for p in group.producers}.values():
                units = self.groups.channels.units_of(producer.ids)
                weight = next(
                    p for p in graph[producer.operation].parameters if p.name == producer.parameter
                )
                level = 1 - count(units, kept) / len(units)
                found.append(PrunedLayer(producer.operation, weight.shape, (len(units),), level))
        return found

    def get_state(self) -> dict[str, Any]:
        kept = self.kept
        removed = {
            str(g.number): np.flatnonzero(~kept[g.units]).tolist()
            for g in self.groups
            if not kept[g.units].all()
        }
        return {
            **super().get_state(),
            "level": self._level,
            "frozen": self.frozen,
            "removed": removed,
            "coefficients": {name: list(pair) for name, pair in self.coefficients.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        kept = np.ones(self._channels.units, dtype=bool)
        try:
            for group in self.groups:
                kept[group.units[state["removed"].get(str(group.number), [])]] = False
            self._level = float(state["level"])
            self.frozen = bool(state["frozen"])
            self.coefficients = {n: (p[0], p[1]) for n, p in state["coefficients"].items()}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"The state of 'filter_pruning' in compression_state is damaged ({error!r}). Expected "
                "what get_compression_state() of this release returned, for this model."
            ) from error
        self._compressed.home.set_masks(self._compressed.ops, self._channels.masks, kept)
        super().load_state(state)
