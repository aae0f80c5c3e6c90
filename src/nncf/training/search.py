# SPDX-License-Identifier: Apache-2.0
"""The search for the highest compression rate that meets a goal: plain values, nothing trains here.

The rate goes up by a step after it met the goal, and down after it did not within ``patience``
epochs. Where the direction turns, the step and the learning rate shrink. Rates whose answer is known
(not above one that met, not below one that did not) are passed over without training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_NEAR = 1e-9


@dataclass(frozen=True)
class Limits:
    """What the search may do: bounds of the rate, epochs at one rate, and how steps shrink.

    ``step_reduction`` and ``lr_reduction`` are factors on the step and on the learning rate
    whenever the direction turns. A step below ``minimal_step`` is the end; the first time the
    search begins once more, with ``second_step`` above the highest rate that met the goal.
    """

    minimal_rate: float
    maximal_rate: float
    patience: int
    step_reduction: float
    lr_reduction: float
    minimal_step: float
    second_step: float


@dataclass(frozen=True)
class Search:
    """Where the search stands: at a rate for some epochs, with what is known of others.

    ``met`` says whether the rate has met the goal, ``passed`` is the highest that did, ``failed``
    the lowest that did not. ``reached`` is the rate that setting ``rate`` led to, which is higher
    where the model has no other between. ``direction`` is 0 before the first step. ``finished``
    says why the search is over.
    """

    rate: float
    step: float
    direction: int = 0
    lr_factor: float = 1.0
    epochs: int = 0
    met: bool = False
    passed: float | None = None
    failed: float | None = None
    reached: float = 0.0
    is_second: bool = False
    finished: str = ""

    def after_epoch(self, met: bool) -> Search:
        """Return the search after an epoch at its rate, which met the goal or not."""
        return replace(self, epochs=self.epochs + 1, met=self.met or met)

    def is_due(self, limits: Limits) -> bool:
        """Whether it is time for another rate: this one met the goal, or has had its epochs."""
        return self.direction == 0 or self.met or self.epochs >= limits.patience

    def next_rate(self, limits: Limits) -> Search:
        """Return the search at the next rate to train at, or ``finished``."""
        if self.met:
            rate = max(self.rate, self.reached)
            found = replace(self, rate=rate, passed=max(rate, self.passed or 0.0))
        elif self.direction == 0:
            found = self  # it had the epochs of a schedule, not its own: it may be tried again
        else:
            lowest = self.rate if self.failed is None else min(self.rate, self.failed)
            found = replace(self, failed=lowest)
        while True:
            found = _moved(found, limits)
            if found.finished or (known := _known(found)) is None:
                return found
            found = replace(found, met=known)


def _known(search: Search) -> bool | None:
    """Return whether the rate meets the goal as far as it follows from others."""
    if search.passed is not None and search.rate <= search.passed + _NEAR:
        return True
    if search.failed is not None and search.rate >= search.failed - _NEAR:
        return False
    return None


def _moved(search: Search, limits: Limits) -> Search:
    """Return the search one step up if its rate met the goal, else one step down."""
    direction = 1 if search.met else -1
    step, factor = search.step, search.lr_factor
    if search.direction not in {0, direction}:
        step, factor = step * limits.step_reduction, factor * limits.lr_reduction
    if direction > 0 and search.rate >= limits.maximal_rate - _NEAR:
        return replace(
            search, finished=f"the highest rate, {limits.maximal_rate:g}, meets the goal"
        )
    lowest = max(limits.minimal_rate, _NEAR)
    while direction < 0 and search.rate - step < lowest and step >= limits.minimal_step:
        step *= limits.step_reduction  # there is room for a smaller step only
    if step < limits.minimal_step:
        return _second_look(search, limits)
    rate = min(search.rate + direction * step, limits.maximal_rate)
    return replace(
        search,
        rate=rate,
        step=step,
        direction=direction,
        lr_factor=factor,
        epochs=0,
        met=False,
        reached=0.0,
    )


def _second_look(search: Search, limits: Limits) -> Search:
    """Return the search above the highest rate that met the goal, or ``finished`` if it was there.

    Rates that missed the goal are open again: the best model has been trained further since.
    """
    start = search.passed
    if search.is_second or start is None or start + limits.second_step > limits.maximal_rate:
        return replace(search, finished=f"the next step would be below {limits.minimal_step:g}")
    return replace(
        search,
        rate=start + limits.second_step,
        step=limits.second_step,
        direction=1,
        epochs=0,
        met=False,
        failed=None,
        reached=0.0,
        is_second=True,
    )
