# SPDX-License-Identifier: Apache-2.0
"""The goal: which metric of the compressed model is good enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from nncf.config.accuracy_aware import AccuracyDrop
from nncf.errors import ConfigError

_SECTION = "accuracy_aware_training.params"


@dataclass(frozen=True)
class Goal:
    """The metric of the uncompressed model, and the worst one that is tolerated."""

    uncompressed: float
    tolerable: float
    higher_is_better: bool = True

    @classmethod
    def of(cls, params: AccuracyDrop, uncompressed: Any) -> Goal:
        """Return the goal of a configuration.

        ``base − drop``, or ``base · (1 − drop / 100)`` for a relative one; with a metric that is
        better when lower the signs change. Raises ConfigError for a metric that is no finite
        number, and for a drop that tolerates any model.
        """
        base = finite(uncompressed)
        if base is None:
            raise ConfigError(
                f"uncompressed_model_accuracy = {uncompressed!r}: expected a finite number, the "
                "metric of the model before compression in the units that validate_fn returns."
            )
        relative = params.maximal_relative_accuracy_degradation
        if relative is not None:
            name, drop = "maximal_relative_accuracy_degradation", abs(base) * relative / 100
        else:
            name = "maximal_absolute_accuracy_degradation"
            drop = float(params.maximal_absolute_accuracy_degradation or 0.0)
        if params.higher_is_better and base > 0 and drop >= base:
            raise ConfigError(
                f"{_SECTION}.{name}: a drop of {drop:g} from an accuracy of {base:g} tolerates any "
                "model. Expected less than the accuracy itself, in the same units: 1 of 76.3 %, or "
                "0.01 of 0.763."
            )
        return cls(
            base, base - drop if params.higher_is_better else base + drop, params.higher_is_better
        )

    def budget(self, metric: float) -> float:
        """Return by how much a metric is better than the tolerated one; negative: not met."""
        if math.isnan(metric):
            return -math.inf
        return metric - self.tolerable if self.higher_is_better else self.tolerable - metric


def finite(value: Any) -> float | None:
    """Return a number, or a tensor with a single one, as a float; None for anything else."""
    number = to_number(value)
    return number if number is not None and math.isfinite(number) else None


def to_number(value: Any) -> float | None:
    """Return what counts as one number as a float: NaN too, no bool and no text."""
    if isinstance(value, bool | str | bytes):
        return None
    if isinstance(value, Real):
        return float(value)
    if not hasattr(value, "item"):
        return None
    try:
        return float(value.item())  # of a tensor or an array
    except (TypeError, ValueError, RuntimeError):  # of several values, or of none
        return None
