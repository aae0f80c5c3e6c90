# SPDX-License-Identifier: Apache-2.0
"""The runner: everything of a run that touches the model, the user's functions or files."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nncf.backends import backend_of
from nncf.compression.files import write_text
from nncf.compression.statistics import prepare_for_tensorboard
from nncf.config.accuracy_aware import TargetOptions
from nncf.errors import CheckpointError, TrainingError
from nncf.training.calls import Calls, accepted
from nncf.training.goal import Goal
from nncf.training.page import page
from nncf.training.progress import Attempt, Progress, best_of
from nncf.training.target import least_rate, measure

_LOGGER = logging.getLogger("nncf")

FOLDER = "accuracy_aware_training"
LAST = "acc_aware_checkpoint_last"
BEST = "acc_aware_checkpoint_best"
LOG = "attempts.json"
PAGE = "attempts.html"


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; one that goes on must be asked for the same."""

    mode: str
    goal: Goal
    params: Mapping[str, Any]
    algorithms: tuple[str, ...]

    @property
    def by_rate(self) -> bool:
        """Whether a higher compression rate is better, or the metric alone counts."""
        return self.mode == "adaptive_compression_level"

    def to_state(self) -> dict[str, Any]:
        return {**asdict(self), "algorithms": list(self.algorithms)}


class Runner:
    """Trains, judges, saves and restores one model.

    What ``dump_checkpoint_fn`` gets as ``accuracy_aware_runner``: ``optimizer``, ``lr_scheduler``,
    ``cumulative_epoch_count``, ``best_val_metric_value`` and ``current_val_metric_value`` are for
    it to read.
    """

    def __init__(
        self, model: Any, controller: Any, calls: Calls, settings: Settings, *, dump: bool
    ) -> None:
        self.model = model
        self.controller = controller
        self.calls = calls
        self.settings = settings
        self.loss: Any = None
        self.progress = Progress()
        self.writer: Any = None
        self._dump = dump
        self._began = time.monotonic()
        home = importlib.import_module(f"nncf.training.{backend_of(controller.model)}")
        self.framework = home.Framework(model)

    # --- for the user's functions --------------------------------------------------------------

    @property
    def optimizer(self) -> Any:
        return self.framework.optimizer

    @property
    def lr_scheduler(self) -> Any:
        return self.framework.lr_scheduler

    @property
    def cumulative_epoch_count(self) -> int:
        """Epochs trained since the run began."""
        return self.progress.epochs

    @property
    def current_val_metric_value(self) -> float | None:
        return self.progress.attempts[-1].metric if self.progress.attempts else None

    @property
    def best_val_metric_value(self) -> float | None:
        """The best metric of a fully compressed model so far, or of any if there is none."""
        best = best_of(self.progress.attempts, highest_rate=False)
        return None if best is None else best.metric

    # --- a folder for the run ------------------------------------------------------------------

    @contextmanager
    def open(
        self, log_dir: str | Path | None, *, resume: bool, writer: Any = None
    ) -> Iterator[None]:
        """Find the folder of the run to go on with, or make one, and have a TensorBoard writer."""
        home = Path("runs" if log_dir is None else log_dir).absolute() / FOLDER
        self.folder = Path(self.framework.agreed(str(self._folder(home, resume=resume))))
        self.writer = None if writer is None else self.framework.writer(writer)
        if writer is None and self.is_main:
            self.writer = self.framework.summary_writer(self.folder)
        try:
            yield
        finally:
            if writer is None and self.writer is not None:
                self.writer.close()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and shows, of several or alone."""
        return bool(self.framework.is_main)

    def _folder(self, home: Path, *, resume: bool) -> Path:
        if resume:
            found = sorted(home.glob(f"*/{LAST}{self.framework.extension}"))
            if found:
                return found[-1].parent
            _LOGGER.info("%s holds no run to go on with: a new one begins.", home)
        name = datetime.now().astimezone().strftime("%Y-%m-%d__%H-%M-%S")
        if not self.is_main:
            return home / name
        for number in range(2, 100):
            try:
                (home / name).mkdir(parents=True)
            except FileExistsError:
                name = f"{name[:20]}_{number}"
                continue
            except OSError as error:
                raise TrainingError(
                    f"The folder {home} cannot be made: {error.strerror}. Pass a log_dir that you "
                    "may write to."
                ) from error
            break
        return home / name

    def restore(self) -> Progress | None:
        """Bring everything back to the end of the last epoch that was saved, if there is one."""
        path = self.folder / f"{LAST}{self.framework.extension}"
        if not path.exists():
            return None
        saved = self.framework.read(path)
        self._check_settings(saved, path)
        self.progress = Progress.from_state(saved["progress"])
        if self.progress.search is not None:
            self.drive()
        self._put(saved)
        self.framework.load_rest(saved["rest"], saved["optimizer"])
        self._began = time.monotonic() - self.progress.seconds
        return self.progress

    def _check_settings(self, saved: Mapping[str, Any], path: Path) -> None:
        former, now = saved.get("settings", {}), self.settings.to_state()
        other = [name for name in now if former.get(name) != now[name]]
        if other:
            was, wanted = ({n: s.get(n) for n in other} for s in (former, now))
            raise CheckpointError(
                f"{path} is of a run with other settings: {was}; now: {wanted}. Go on with the "
                "settings of that run, or start anew with resume=False."
            )

    # --- one epoch -----------------------------------------------------------------------------

    def configure(self, factor: float = 1.0) -> None:
        """Make optimizers and LR schedulers anew, learning rates times ``factor``."""
        if self.calls.configure_optimizers_fn is not None:
            self.framework.configure(self.calls.configure_optimizers_fn(), factor)

    def train_epoch(self) -> None:
        """Step the compression schedule and call ``train_epoch_fn``."""
        scheduler = self.controller.scheduler
        scheduler.epoch_step()
        epoch = scheduler.current_epoch
        self.loss = accepted(
            self.calls.train_epoch_fn,
            *(self.controller, self.model),
            epoch=self.progress.epochs,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
        )
        if scheduler.current_epoch != epoch and self.progress.epochs == 0:
            _LOGGER.warning(
                "train_epoch_fn calls scheduler.epoch_step(), which the loop has called already: "
                "the schedule goes on by two epochs at a time. Remove the call."
            )

    def judge(self, goal: Goal, *, trained: bool) -> Attempt:
        """Validate the model and return the attempt, the epoch that has been ``trained`` counted."""
        epoch = self.progress.epochs + trained
        metric = float(self.framework.agreed(self.calls.validate(self.model, epoch)))
        budget = goal.budget(metric)
        if math.isnan(metric):
            _LOGGER.warning("validate_fn returned NaN: this model does not count as good enough.")
        search = self.progress.search
        return Attempt(
            epoch,
            rate=self.rate,
            metric=metric,
            budget=budget,
            stage=self.controller.compression_stage(),
            is_settled=self.controller.is_settled,
            lr_factor=1.0 if search is None else search.lr_factor,
            seconds=float(self.framework.agreed(time.monotonic() - self._began)),
        )

    def update_learning_rate(self) -> None:
        """Call ``update_learning_rate_fn``, or step the LR schedulers."""
        last = self.progress.attempts[-1]
        if self.calls.update_learning_rate_fn is not None:
            self.calls.update_learning_rate_fn(
                self.lr_scheduler, last.epoch, last.metric, self.loss
            )
        else:
            self.framework.update_learning_rate(self.best_val_metric_value)

    # --- the rate ------------------------------------------------------------------------------

    @property
    def driven(self) -> Any:
        """The controller of the algorithm whose rate can be set; None without exactly one."""
        children = [c for c in self.controller.child_ctrls if c.level is not None]
        return children[0] if len(children) == 1 else None

    @property
    def rate(self) -> float | None:
        """How far compression is, the mean of the algorithms that have a rate; None of none."""
        levels = [c.level for c in self.controller.child_ctrls if c.level is not None]
        return sum(levels) / len(levels) if levels else None

    def drive(self) -> None:
        """Take the rate out of the schedule's hands."""
        self.controller.disable_scheduler(self.driven.name)

    def set_rate(self, rate: float) -> None:
        self.driven.compression_rate = rate

    def least_rate(self, target: TargetOptions, bounds: tuple[float, float]) -> float:
        """Return the least rate whose file meets a target; the model is then as it was."""
        weights = copy.deepcopy(self.framework.weights())
        before = self.controller.get_compression_state()["ctrl_state"]

        def value_at(rate: float) -> float:
            self.set_rate(rate)
            value: float = self.framework.agreed(measure(self.controller, target))
            return value

        try:
            return least_rate(target, bounds, value_at)
        finally:
            self.framework.load_weights(weights)
            self.controller.load_state(before)

    # --- files ---------------------------------------------------------------------------------

    def keep_if_best(self, attempt: Attempt, *, by_rate: bool) -> Attempt:
        """Write the model if it is the best so far (at its rate); return the attempt with the file."""
        search = self.progress.search
        rate = attempt.rate if search is None else search.rate
        name = BEST if not by_rate or rate is None else f"{BEST}_{_digits(rate)}"
        path = self.folder / f"{name}{self.framework.extension}"
        rivals = [a for a in self.progress.attempts if a.checkpoint == path.name]
        if best_of((*rivals, attempt), highest_rate=by_rate) is not attempt:
            return attempt
        kept = replace(attempt, checkpoint=path.name)
        self.framework.write(path, self._state(self.progress.with_attempt(kept)))
        return kept

    def load(self, attempt: Attempt) -> None:
        """Bring the model back to an attempt that was kept."""
        assert attempt.checkpoint is not None
        path = self.folder / attempt.checkpoint
        saved = self.framework.read(path)
        if self.calls.load_checkpoint_fn is not None:
            self.calls.load_checkpoint_fn(self.model, str(path))
            self.controller.load_state(saved["compression_state"]["ctrl_state"])
        else:
            self._put(saved)

    def _put(self, saved: Mapping[str, Any]) -> None:
        self.framework.load_weights(saved["state_dict"])
        self.controller.load_state(saved["compression_state"]["ctrl_state"])

    def save(self) -> None:
        """Write the log of attempts, and the state from which the run can go on."""
        if self._dump:
            path = self.folder / f"{LAST}{self.framework.extension}"
            rest = {
                "rest": self.framework.rest_of_state(),
                "progress": self.progress.to_state(),
                "settings": self.settings.to_state(),
            }
            self.framework.write(path, {**self._state(self.progress), **rest})
            if self.calls.dump_checkpoint_fn is not None and self.is_main:
                arguments = self.model, self.controller, self, str(self.folder)
                written = self.calls.dump_checkpoint_fn(*arguments)
                if written is not None:
                    _LOGGER.info("The checkpoint is saved in %s", written)
        if self.is_main:
            self._write_log()

    def _state(self, progress: Progress) -> dict[str, Any]:
        """Return the documented contents of a checkpoint."""
        best = best_of(progress.attempts, highest_rate=False)
        return {
            "epoch": progress.epochs,
            "state_dict": self.framework.weights(),
            "compression_state": self.controller.get_compression_state(),
            "best_metric_val": None if best is None else best.metric,
            "current_val_metric_value": progress.attempts[-1].metric,
            "optimizer": self.framework.optimizer_state(),
        }

    def _write_log(self) -> None:
        state = {**self.settings.to_state(), **self.progress.to_state()}
        # JSON has no infinity, which the budget of NaN is, and no NaN
        text = json.dumps(_plain(state), indent=1)
        write_text(self.folder / LOG, text + "\n")
        shown = page(self.settings.goal, self.progress, by_rate=self.settings.by_rate)
        write_text(self.folder / PAGE, shown)

    # --- for TensorBoard -----------------------------------------------------------------------

    def draw(self) -> None:
        """Write the numbers of the last attempt to TensorBoard."""
        if self.writer is None or not self.is_main:
            return
        last, search = self.progress.attempts[-1], self.progress.search
        drawn = {
            "val/accuracy_aware/metric_value": last.metric,
            "val/accuracy_aware/accuracy_budget": last.budget,
        }
        if search is not None:
            drawn["compression/accuracy_aware/target_compression_rate"] = search.rate
            drawn["compression/accuracy_aware/compression_rate_step"] = search.step
        for tag, value in prepare_for_tensorboard(self.controller.statistics()).items():
            drawn[f"compression/statistics/{tag}"] = value
        for tag, value in drawn.items():
            self.writer.add_scalar(tag, value, last.epoch)


def _digits(rate: float) -> str:
    """Return a rate for the name of a file; rates that differ have different names."""
    text = f"{rate:.3f}"
    return text if abs(float(text) - rate) < 1e-9 else f"{rate:.9f}".rstrip("0")


def _plain(value: Any) -> Any:
    """Return JSON-able data with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
