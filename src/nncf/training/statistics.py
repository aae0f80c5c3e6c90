# SPDX-License-Identifier: Apache-2.0
"""What an accuracy-aware run came to, as values that print as a table."""

from __future__ import annotations

from dataclasses import dataclass

from nncf.compression.statistics import grid
from nncf.training.goal import Goal
from nncf.training.progress import Attempt, Progress


@dataclass(frozen=True)
class TrainingLoopStatistics:
    """The best model of a run beside the uncompressed one, in units of the metric.

    ``accuracy_budget`` is by how much it is better than the goal demands, negative if it is not
    good enough; ``relative_accuracy_degradation`` is in percent of the uncompressed metric. All
    but ``uncompressed_accuracy`` are None before the first validation. ``met`` says whether the
    model is fully compressed and good enough, ``attempts`` are all epochs, ``finished`` why it ended.
    """

    uncompressed_accuracy: float
    compression_rate: float | None = None
    compressed_accuracy: float | None = None
    absolute_accuracy_degradation: float | None = None
    relative_accuracy_degradation: float | None = None
    accuracy_budget: float | None = None
    met: bool = False
    finished: str = ""
    attempts: tuple[Attempt, ...] = ()

    @classmethod
    def of(cls, goal: Goal, best: Attempt | None, progress: Progress) -> TrainingLoopStatistics:
        if best is None:
            return cls(goal.uncompressed)
        sign = 1 if goal.higher_is_better else -1
        lost = sign * (goal.uncompressed - best.metric)
        return cls(
            uncompressed_accuracy=goal.uncompressed,
            compression_rate=best.rate,
            compressed_accuracy=best.metric,
            absolute_accuracy_degradation=lost,
            relative_accuracy_degradation=100 * lost / abs(goal.uncompressed)
            if goal.uncompressed
            else None,
            accuracy_budget=best.budget,
            met=best.met,
            finished=progress.finished,
            attempts=progress.attempts,
        )

    def to_str(self) -> str:
        """Return the statistics as a table."""
        rows = {
            "Uncompressed accuracy": self.uncompressed_accuracy,
            "Compressed accuracy": self.compressed_accuracy,
            "Compression rate": self.compression_rate,
            "Absolute accuracy degradation": self.absolute_accuracy_degradation,
            "Relative accuracy degradation, %": self.relative_accuracy_degradation,
            "Accuracy budget": self.accuracy_budget,
            "Goal met": "yes" if self.met else "no",
            "Epochs": self.attempts[-1].epoch if self.attempts else 0,
            "Ended because": self.finished,
        }
        shown = {
            name: f"{value:.4g}" if isinstance(value, float) else ("" if value is None else value)
            for name, value in rows.items()
        }
        return grid(["Accuracy-aware training", "Value"], list(shown.items()))
