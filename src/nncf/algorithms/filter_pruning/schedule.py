# SPDX-License-Identifier: Apache-2.0
"""How the pruning level grows over the epochs."""

from __future__ import annotations

import math
from typing import Protocol

from nncf.algorithms.filter_pruning.options import FilterPruningOptions
from nncf.compression.schedules import Scheduler

_EARLY = 1 / 8  # of the way; by then the biased curve has come to this share of its target:
_EARLY_SHARE = 3 / 4


class Driven(Protocol):
    """The part of a controller that a schedule drives."""

    def set_pruning_level(self, pruning_level: float) -> None: ...

    def freeze(self) -> None: ...


class PruningScheduler(Scheduler):
    """Sets the level at the start of each epoch and freezes the masks at the end of the schedule.

    Before ``num_init_steps`` epochs nothing is pruned. Then the level goes from ``pruning_init``
    to the target in ``pruning_steps`` epochs, the first of which has the initial level.
    """

    def __init__(self, controller: Driven, options: FilterPruningOptions) -> None:
        super().__init__()
        self._controller = controller
        self._warm_up = options.params.num_init_steps
        self._kind = options.params.schedule
        self._initial = options.pruning_init
        self.target_level = target_of(options)
        steps = 0 if self._kind == "baseline" else options.params.pruning_steps
        self._end = self._warm_up + steps
        self._last = max(steps - 1, 0)
        if self._warm_up == 0 and self._initial > 0:
            controller.set_pruning_level(self._initial)

    @property
    def current_pruning_level(self) -> float:
        """The level that the schedule asks for now."""
        epoch = self.current_epoch - self._warm_up
        if self.current_epoch < 0:
            return self._initial if self._warm_up == 0 else 0.0
        if epoch < 0:
            return 0.0
        return level_at(self._kind, epoch, self._last, (self._initial, self.target_level))

    def epoch_step(self, next_epoch: int | None = None) -> None:
        was_frozen = self.current_epoch >= self._end
        super().epoch_step(next_epoch)
        if self.current_epoch < self._end or not was_frozen:
            self._controller.set_pruning_level(self.current_pruning_level)
        if self.current_epoch >= self._end:
            self._controller.freeze()


def target_of(options: FilterPruningOptions) -> float:
    """Return the level at the end, of FLOPs where that is what is asked for."""
    flops = options.params.pruning_flops_target
    return options.params.pruning_target if flops is None else flops


def level_at(kind: str, epoch: int, last: int, ends: tuple[float, float]) -> float:
    """Return the level of an epoch on a curve from ``ends[0]`` at 0 to ``ends[1]`` at ``last``.

    ``exponential``: the share that is left falls by the same factor each epoch.
    ``exponential_with_bias``: ``a · exp(−k · epoch) + b``, with k such that after an eighth of
    the way the level is three quarters of the target. ``baseline``: the target at once.
    """
    initial, target = ends
    if kind == "baseline" or epoch >= last or initial >= target:
        return target
    progress = epoch / last
    if kind == "exponential":
        left = (1 - initial) * ((1 - target) / (1 - initial)) ** progress
        return min(1 - left, target)
    total = bias_rate(initial, target)
    if total == 0:
        return initial + (target - initial) * progress
    return initial + (target - initial) * math.expm1(-total * progress) / math.expm1(-total)


def bias_rate(initial: float, target: float) -> float:
    """Return ``k · last`` of the biased curve, 0 for a straight line.

    It solves ``exp(−u / 8) − c · exp(−u) + c − 1 = 0`` with
    ``c = (¾ target − initial) / (target − initial)``. Where the initial level is so high that a
    straight line is ahead of the condition already, the line is taken.
    """
    from scipy.optimize import brentq

    early = (_EARLY_SHARE * target - initial) / (target - initial)
    if early <= _EARLY + 1e-6:
        return 0.0

    def missed(total: float) -> float:
        return math.exp(-total * _EARLY) - early * math.exp(-total) + early - 1

    lowest = 1e-9
    while missed(lowest) <= 0:  # 0 is a root too, from which the function rises
        lowest *= 10
    return float(brentq(missed, lowest, 800.0, xtol=1e-12))
