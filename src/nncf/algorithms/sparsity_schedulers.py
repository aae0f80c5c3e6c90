# SPDX-License-Identifier: Apache-2.0
"""Schedulers of the sparsity level: how it grows from epoch to epoch, and when masks are frozen."""

from __future__ import annotations

import logging
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Protocol

from nncf.algorithms.sparsity_options import SparsitySchedule
from nncf.compression.schedules import Scheduler
from nncf.errors import ConfigError

_LOGGER = logging.getLogger("nncf")


class Sparsified(Protocol):
    """What a scheduler drives: a controller whose level can be set and whose masks can be frozen.

    Both calls may come again with the same value. A restored scheduler calls neither: level and
    freeze belong to the controller's own state, masks to the model's.
    """

    def set_sparsity_level(self, level: float) -> None: ...

    def freeze(self) -> None: ...


def make_scheduler(
    controller: Sparsified,
    params: SparsitySchedule,
    *,
    initial_level: float,
    current_sparsity: Callable[[], float] | None = None,
) -> Scheduler:
    """Return the scheduler that ``params`` ask for; with local levels one that only counts.

    ``current_sparsity`` tells the adaptive schedule how sparse the masks are now.
    """
    if params.sparsity_level_setting_mode == "local":
        return Scheduler()
    if params.schedule == "adaptive":
        assert current_sparsity is not None  # the options of an algorithm list what it can do
        return AdaptiveScheduler(controller, params, initial_level, current_sparsity)
    kinds: dict[str, type[SparsityScheduler]] = {
        "polynomial": PolynomialScheduler,
        "exponential": ExponentialScheduler,
        "multistep": MultistepScheduler,
    }
    return kinds[params.schedule](controller, params, initial_level)


class SparsityScheduler(Scheduler):
    """Sets the level when an epoch begins; from the freeze epoch on level and masks stay.

    The freeze epoch itself still sets its level first, so that a target due at that very epoch
    is reached. ``target_level`` is the last level of the schedule.
    """

    def __init__(
        self, controller: Sparsified, params: SparsitySchedule, initial_level: float
    ) -> None:
        super().__init__()
        self._controller = controller
        self.initial_level = initial_level
        self.target_level = params.final_level()
        self.target_epoch = params.sparsity_target_epoch
        self.freeze_epoch = params.sparsity_freeze_epoch

    @abstractmethod
    def level_at(self, epoch: float) -> float:
        """Return the level at a moment counted in epochs, fractions included."""

    @property
    def current_sparsity_level(self) -> float:
        """The level that the schedule asks for now; before the first epoch the initial one."""
        if self.current_epoch < 0:
            return self.initial_level
        return self.level_at(min(self._moment(), self.freeze_epoch))

    def epoch_step(self, next_epoch: int | None = None) -> None:
        was_frozen = self.current_epoch >= self.freeze_epoch
        super().epoch_step(next_epoch)
        if self.current_epoch < self.freeze_epoch or not was_frozen:
            self._controller.set_sparsity_level(self.current_sparsity_level)
        if self.current_epoch >= self.freeze_epoch:
            self._controller.freeze()

    def _moment(self) -> float:
        return self.current_epoch

    def _progress(self, epoch: float) -> float:
        return min(epoch / self.target_epoch, 1.0) if self.target_epoch else 1.0


class PolynomialScheduler(SparsityScheduler):
    """The level follows a power of the time, by epoch or by optimizer step.

    Concave: ``target − (target − initial) · (1 − t)^power``; convex: ``initial + (target −
    initial) · t^power``, with t the share of ``sparsity_target_epoch`` that is over. Per step
    it needs to know how many steps an epoch has: until that has been counted, which takes the
    first epoch, the level changes only when epochs begin.
    """

    def __init__(
        self, controller: Sparsified, params: SparsitySchedule, initial_level: float
    ) -> None:
        super().__init__(controller, params, initial_level)
        self.power, self.concave = params.power, params.concave
        self.per_step = params.update_per_optimizer_step
        self.steps_per_epoch = params.steps_per_epoch
        self._configured = params.steps_per_epoch
        self._counted = False
        self._step_before_epoch = -1

    def level_at(self, epoch: float) -> float:
        progress = self._progress(epoch)
        if progress >= 1:
            return self.target_level
        rise = self.target_level - self.initial_level
        if self.concave:
            return float(self.target_level - rise * (1 - progress) ** self.power)
        return float(self.initial_level + rise * progress**self.power)

    def epoch_step(self, next_epoch: int | None = None) -> None:
        steps = self.current_step - self._step_before_epoch
        if self.per_step and self.current_epoch >= 0 and steps > 0 and not self._counted:
            self._count(steps)
        self._step_before_epoch = self.current_step
        if self.per_step and self.steps_per_epoch is None:
            _LOGGER.warning(
                "params.steps_per_epoch is not given: the steps of this epoch are counted, and the "
                "sparsity level grows per step from the next one on."
            )
        super().epoch_step(next_epoch)

    def step(self, next_step: int | None = None) -> None:
        before = self.current_sparsity_level
        super().step(next_step)
        level = self.current_sparsity_level
        if self.per_step and level != before:
            self._controller.set_sparsity_level(level)

    def _count(self, steps: int) -> None:
        if self._configured is not None and steps != self._configured:
            raise ConfigError(
                f"params.steps_per_epoch = {self._configured}, but the first epoch had {steps} "
                "steps, so the sparsity level would grow at the wrong pace. Expected the number of "
                "scheduler.step() calls between two scheduler.epoch_step() calls. Correct it, or "
                "leave it out to have them counted."
            )
        self.steps_per_epoch = steps
        self._counted = True

    def _moment(self) -> float:
        if not self.per_step or self.steps_per_epoch is None:
            return self.current_epoch
        begun = self.current_step - self._step_before_epoch - 1
        return self.current_epoch + min(max(begun, 0) / self.steps_per_epoch, 1.0)

    def get_state(self) -> dict[str, Any]:
        return {
            **super().get_state(),
            "steps_per_epoch": self.steps_per_epoch,
            "counted": self._counted,
            "step_before_epoch": self._step_before_epoch,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.steps_per_epoch = state["steps_per_epoch"]
        self._counted = state["counted"]
        self._step_before_epoch = state["step_before_epoch"]


class ExponentialScheduler(SparsityScheduler):
    """The density, 1 − level, shrinks by the same factor in every epoch until the target."""

    def level_at(self, epoch: float) -> float:
        progress = self._progress(epoch)
        if progress >= 1:
            return self.target_level
        first, last = 1 - self.initial_level, 1 - self.target_level
        return float(1 - first * (last / first) ** progress)


class MultistepScheduler(SparsityScheduler):
    """The level jumps at given epochs; the last of the levels is the target."""

    def __init__(
        self, controller: Sparsified, params: SparsitySchedule, initial_level: float
    ) -> None:
        super().__init__(controller, params, initial_level)
        self.steps, self.levels = params.multistep_steps, params.multistep_sparsity_levels

    def level_at(self, epoch: float) -> float:
        return self.levels[bisect_right(self.steps, epoch)]


class AdaptiveScheduler(SparsityScheduler):
    """The level goes up by ``step`` once the masks have been near it for ``patience`` epochs."""

    def __init__(
        self,
        controller: Sparsified,
        params: Any,
        initial_level: float,
        current_sparsity: Callable[[], float],
    ) -> None:
        super().__init__(controller, params, initial_level)
        self._current_sparsity = current_sparsity
        self.patience, self.raise_by, self.near = params.patience, params.step, params.eps
        self._level = initial_level
        self._epochs_near = 0

    def level_at(self, epoch: float) -> float:  # noqa: ARG002  # depends on the masks, not the time
        return self._level

    def epoch_step(self, next_epoch: int | None = None) -> None:
        if self.current_epoch < self.freeze_epoch:
            self._look()
        super().epoch_step(next_epoch)

    def _look(self) -> None:
        if self._current_sparsity() < self._level - self.near:
            return
        self._epochs_near += 1
        if self._epochs_near >= self.patience:
            self._epochs_near = 0
            self._level = min(self._level + self.raise_by, self.target_level)

    def get_state(self) -> dict[str, Any]:
        own = {"level": self._level, "epochs_near": self._epochs_near}
        return {**super().get_state(), **own}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._level = state["level"]
        self._epochs_near = state["epochs_near"]
