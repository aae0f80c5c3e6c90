# SPDX-License-Identifier: Apache-2.0
"""Learning rates of Keras' optimizers: a number or a schedule, and either of them times a factor."""

from __future__ import annotations

from typing import Any

import keras

Schedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("nncf")
class Scaled(Schedule):
    """A schedule of learning rates times a factor."""

    def __init__(self, schedule: Any, factor: float) -> None:
        super().__init__()
        self.schedule, self.factor = schedule, factor

    def __call__(self, step: Any) -> Any:
        return self.factor * self.schedule(step)

    def get_config(self) -> dict[str, Any]:
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scaled:
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["factor"])


def learning_rate(optimizer: Any) -> Any:
    """Return the variable or the schedule that an optimizer has its learning rate from."""
    return _holder(optimizer)._learning_rate  # noqa: SLF001  # a schedule has no public reader


def set_learning_rate(optimizer: Any, rate: Any) -> None:
    """Give an optimizer a variable or a schedule that ``learning_rate`` returned, or a schedule."""
    _holder(optimizer)._learning_rate = rate  # noqa: SLF001  # the setter takes numbers


def has_schedule(optimizer: Any) -> bool:
    return isinstance(learning_rate(optimizer), Schedule)


def scale_learning_rate(optimizer: Any, factor: float) -> None:
    """Multiply the learning rate of an optimizer, or all rates of its schedule."""
    if factor == 1.0:
        return
    if has_schedule(optimizer):
        set_learning_rate(optimizer, Scaled(learning_rate(optimizer), factor))
    else:
        optimizer.learning_rate = float(optimizer.learning_rate) * factor


def _holder(optimizer: Any) -> Any:
    """Return the optimizer that has the rate: one that scales losses holds it inside."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer
