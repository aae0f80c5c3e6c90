# SPDX-License-Identifier: Apache-2.0
"""How a run is going: a live table line on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from nncf.training.goal import Goal
from nncf.training.progress import Attempt, Progress, best_of

_LOGGER = logging.getLogger("nncf")


class Display:
    """Shows level, metric, what is left of the budgets, and the best model so far.

    On a terminal (stderr) a bar with all of it stays at the bottom; else each epoch is a line of
    the logger ``nncf``. Nothing is shown unless ``shown``; how it ended is logged in any case. After
    Ctrl-C a run that ``can_resume`` says how to go on.
    """

    def __init__(self, goal: Goal, params: Any, *, shown: bool, can_resume: bool) -> None:
        self._goal = goal
        self._params = params
        self._shown = shown
        self._can_resume = can_resume
        self._last = Progress()
        self._bar: Bar | None = None
        console = Console(stderr=True)
        if shown and console.is_terminal:
            self._bar = Bar(
                *(TextColumn("epoch"), MofNCompleteColumn(), BarColumn(bar_width=20)),
                *(TimeElapsedColumn(), TextColumn("{task.description}")),
                console=console,
            )
            self._task = self._bar.add_task("", total=params.maximal_total_epochs)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._tell_how_to_go_on()

    def begin(self, progress: Progress, folder: Path) -> None:
        """Show where the run is kept, and what the first or the last epoch came to."""
        if self._shown:
            sign = ">=" if self._goal.higher_is_better else "<="
            _LOGGER.info(
                "Goal: metric %s %.6g. The run is kept in %s", sign, self._goal.tolerable, folder
            )
        self.show(progress)

    def show(self, progress: Progress) -> None:
        """Show the last epoch."""
        self._last = progress
        if not self._shown or not progress.attempts:
            return
        text = self._text(progress)
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.epochs, description=text)
        else:
            _LOGGER.info(
                "epoch %d of %d: %s", progress.epochs, self._params.maximal_total_epochs, text
            )

    def _text(self, progress: Progress) -> str:
        last = progress.attempts[-1]
        best = best_of(progress.attempts, highest_rate=progress.search is not None)
        assert best is not None  # there is one
        words = [f"{_rate(last)}metric {last.metric:.6g} ({last.budget:+.4g})"]
        words.append(f"best {_rate(best)}{best.metric:.6g}{'' if best.met else ', goal not met'}")
        minutes = self._params.maximal_total_minutes
        if minutes is not None:
            words.append(f"{max(minutes - progress.seconds / 60, 0):.1f} minutes left")
        return "; ".join(words)

    def _tell_how_to_go_on(self) -> None:
        if self._shown and self._can_resume and self._last.attempts:
            _LOGGER.info(
                "Stopped after epoch %d. run(…, resume=True) with the same log_dir goes on from there.",
                self._last.epochs,
            )

    def end(self, progress: Progress, best: Attempt) -> None:
        """Log how the run ended, and a warning if no model is good enough."""
        result = f"{_rate(best)}metric {best.metric:.6g} of epoch {best.epoch}"
        if best.met:
            if self._shown:
                _LOGGER.info("Ended: %s. Result: %s", progress.finished, result)
            return
        _LOGGER.warning(
            "Could not produce a compressed model satisfying the set accuracy degradation criterion "
            "during training (%s). The nearest is returned: %s. Increasing the number of training "
            "epochs, or tolerating more, may help.",
            progress.finished,
            result,
        )


def _rate(attempt: Attempt) -> str:
    return "" if attempt.rate is None else f"rate {attempt.rate:.3f}, "
