# SPDX-License-Identifier: Apache-2.0
"""The controller of RB sparsity: the loss that pulls the masks to a level, and that level."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from nncf.algorithms.rb_sparsity import RBSparsityOptions
from nncf.algorithms.rb_sparsity.mask import TOLERANCE
from nncf.algorithms.rb_sparsity.statistics import RBSparsityStatistics
from nncf.algorithms.sparsity_controller import (
    SparsityController,
    checked_level,
    damaged,
    masks_at,
    mean_level,
    model_statistics,
)
from nncf.algorithms.sparsity_schedulers import make_scheduler
from nncf.algorithms.weight_placement import parameter_names
from nncf.compression.algorithm import Compressed
from nncf.compression.statistics import Statistics
from nncf.errors import ConfigError

_LOGGER = logging.getLogger("nncf")


class RBSparsityController(SparsityController):
    """Holds the learned masks of a model and the level that each of them is pulled to.

    ``levels`` are by Insert name; with global levels all are the same, and the loss looks at all
    masks together.
    """

    name = "rb_sparsity"

    def __init__(self, compressed: Compressed, options: RBSparsityOptions) -> None:
        super().__init__(options.params, options.sparsity_init)
        self._compressed = compressed
        self._parameters = parameter_names(compressed.layout, compressed.graph)
        self._sizes = {insert.name: prod(insert.shape) for insert in compressed.layout}
        self.masks = dict(compressed.ops)
        self.levels = dict.fromkeys(self.masks, options.sparsity_init)
        self._tell_levels()
        self.scheduler = make_scheduler(
            self,
            options.params,
            initial_level=options.sparsity_init,
            current_sparsity=lambda: self.current_sparsity,
        )

    def loss(self) -> Any:
        """Return ``((kept / all − (1 − level)) / 0.05)²``, 0 once the masks are frozen.

        With local levels it is the sum of that of each layer.
        """
        if not self.masks:
            return 0.0
        return self._compressed.home.loss(
            list(self.masks.values()), list(self._sizes.values()), is_local=self.is_local
        )

    def set_sparsity_level(self, level: float, target: str | Sequence[str] | None = None) -> None:
        """Let the loss pull the masks to a share ``level`` of dropped weights.

        ``target``, a scope or several, names layers whose own level it is; that needs
        ``"sparsity_level_setting_mode": "local"``. Without it the level is that of all layers.

        Raises LevelError for a level out of reach, ScopeNotFound, and ConfigError for a layer's
        level in the global mode.
        """
        level = checked_level(level)
        names = list(self.masks) if target is None else self._layers(target)
        if self.frozen:
            _LOGGER.warning(
                "The masks are frozen: level %g is not applied. Call freeze(False) first.", level
            )
            return
        self.levels.update(dict.fromkeys(names, level))
        self.sparsity_level = mean_level(self.levels, self._compressed.layout)
        if target is None:
            self.sparsity_level = level
        self._tell_levels()

    def _tell_levels(self) -> None:
        """Let the masks know the level that their loss aims at."""
        for name, mask in self.masks.items():
            mask.level = self.levels[name] if self.is_local else self.sparsity_level

    def _layers(self, target: str | Sequence[str]) -> list[str]:
        if not self.is_local:
            raise ConfigError(
                "set_sparsity_level: a level for one layer, but the loss looks at all layers "
                'together. Set params.sparsity_level_setting_mode to "local", or leave target out.'
            )
        return masks_at(self._compressed, target)

    def freeze(self, freeze: bool = True) -> None:
        """Keep the masks as they are from now on, or with False let them learn again.

        Masks that are still far from their level are frozen with a warning.
        """
        if freeze and not self.frozen and self.current_sparsity < self.sparsity_level - TOLERANCE:
            _LOGGER.warning(
                "rb_sparsity: the masks are frozen at level %.3f, and %.3f was asked for: they "
                "learn too slowly for this many steps. Give their logits a higher learning rate "
                "(1e-2 to 1e-1 with Adam), or freeze later.",
                self.current_sparsity,
                self.sparsity_level,
            )
        super().freeze(freeze)
        for mask in self.masks.values():
            mask.freeze(freeze)

    @property
    def current_sparsity(self) -> float:
        """Share of the masked weights that evaluation drops now."""
        total = sum(self._sizes.values())
        kept = sum(int(mask.kept().sum()) for mask in self.masks.values())
        return 1 - kept / total if total else 0.0

    @property
    def level(self) -> float:
        """The level of the masks, not above the one that the loss aims at."""
        return min(self.sparsity_level, self.current_sparsity)

    @property
    def is_settled(self) -> bool:
        return self.current_sparsity >= self.sparsity_level - TOLERANCE

    @property
    def mean_sparse_prob(self) -> float:
        """Mean probability of a masked weight to be dropped in training."""
        total = sum(self._sizes.values())
        kept = sum(float(mask.probability_sum()) for mask in self.masks.values())
        return 1 - kept / total if total else 0.0

    @property
    def compression_rate(self) -> float | None:
        """The level that the loss aims at; training reaches it some epochs later.

        A rate that is set becomes the level of all layers, and frozen masks learn again.
        """
        return self.sparsity_level

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        rate = checked_level(rate)
        self.freeze(False)
        self.set_sparsity_level(rate)

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:  # noqa: ARG002  # all are quick
        return Statistics(
            rb_sparsity=RBSparsityStatistics(
                model_statistics=model_statistics(self._compressed, self._parameters),
                target_sparsity_level=self.sparsity_level,
                mean_sparse_prob=self.mean_sparse_prob,
            )
        )

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "levels": dict(self.levels)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        try:
            levels = {name: float(state["levels"][name]) for name in self.masks}
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.name, "levels", error) from error
        self.levels = levels
        super().load_state(state)
        self._tell_levels()
        self.freeze(self.frozen)
