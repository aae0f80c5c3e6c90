# SPDX-License-Identifier: Apache-2.0
"""What a run has come to: every epoch that was tried, and all that the next one depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from nncf.compression.stage import CompressionStage
from nncf.errors import CheckpointError
from nncf.training.search import Search


@dataclass(frozen=True)
class Attempt:
    """One trained model: after ``epoch`` epochs of the run, 0 before the first.

    ``rate`` is the compression rate (None where no algorithm has one), ``budget`` by how much the
    metric is better than the goal demands, ``is_settled`` whether the model is at the rate that was
    set, ``seconds`` the time since the run began, stops not counted, and ``checkpoint`` the file
    that was written of it as the best so far.
    """

    epoch: int
    rate: float | None
    metric: float
    budget: float
    stage: CompressionStage
    is_settled: bool
    lr_factor: float
    seconds: float
    checkpoint: str | None = None

    @property
    def met(self) -> bool:
        """Whether it is fully compressed and good enough."""
        is_whole = self.stage is CompressionStage.FULLY_COMPRESSED and self.is_settled
        return is_whole and self.budget >= 0


@dataclass(frozen=True)
class Progress:
    """All attempts of a run in order, where the search stands (None before it begins), the end."""

    attempts: tuple[Attempt, ...] = ()
    search: Search | None = None
    finished: str = ""

    @property
    def epochs(self) -> int:
        """Epochs trained so far."""
        return self.attempts[-1].epoch if self.attempts else 0

    @property
    def seconds(self) -> float:
        return self.attempts[-1].seconds if self.attempts else 0.0

    def with_attempt(self, attempt: Attempt) -> Progress:
        return replace(self, attempts=(*self.attempts, attempt))

    def restaged(self, stage: CompressionStage) -> Progress:
        """Return it with the last attempt at a stage, which is another once its schedule is off."""
        *former, last = self.attempts
        return replace(self, attempts=(*former, replace(last, stage=stage)))

    def to_state(self) -> dict[str, Any]:
        """Return it as JSON-able data; ``from_state`` takes it back."""
        attempts = [{**asdict(item), "stage": int(item.stage)} for item in self.attempts]
        search = None if self.search is None else asdict(self.search)
        return {"attempts": attempts, "search": search, "finished": self.finished}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        try:
            attempts = tuple(
                Attempt(**{**item, "stage": CompressionStage(item["stage"])})
                for item in state["attempts"]
            )
            search = None if state["search"] is None else Search(**state["search"])
            return cls(attempts, search, state["finished"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The progress of an accuracy-aware run is damaged ({error!r}). Expected what this "
                "release wrote. Start anew with resume=False."
            ) from error


def best_of(attempts: tuple[Attempt, ...], *, highest_rate: bool) -> Attempt | None:
    """Return the attempt to keep, None without any.

    Of those that met the goal the one with the highest rate (if ``highest_rate``), then with the
    best metric. If none met it: the furthest compressed, then the nearest to the goal. The earlier
    of equal ones.
    """

    def order(attempt: Attempt) -> tuple[Any, ...]:
        rate = attempt.rate or 0.0
        if attempt.met:
            return (True, rate if highest_rate else 0.0, attempt.budget)
        return (False, int(attempt.stage), attempt.budget)

    return max(attempts, key=order, default=None)
