# SPDX-License-Identifier: Apache-2.0
"""The accuracy-aware loops: early exit, and the search for the highest compression rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nncf.compression.stage import CompressionStage
from nncf.config import NNCFConfig
from nncf.config.accuracy_aware import AdaptiveOptions, AdaptiveParams, EarlyExitOptions
from nncf.errors import ConfigError
from nncf.training.calls import Calls
from nncf.training.display import Display
from nncf.training.goal import Goal
from nncf.training.progress import Progress, best_of
from nncf.training.runner import Runner, Settings
from nncf.training.search import Limits, Search
from nncf.training.statistics import TrainingLoopStatistics


def create_accuracy_aware_training_loop(
    nncf_config: NNCFConfig | Mapping[str, Any],
    compression_ctrl: Any,
    uncompressed_model_accuracy: float,
    **options: Any,
) -> TrainingLoop:
    """Return the loop that ``accuracy_aware_training`` of a configuration asks for.

    Args:
        nncf_config: the configuration that the model was compressed with.
        compression_ctrl: the controller that ``create_compressed_model`` returned.
        uncompressed_model_accuracy: the metric of the model before compression, in the units
            that ``validate_fn`` returns.
        options: keywords of the loop: ``lr_updates_needed``, ``verbose``, ``dump_checkpoints``,
            and of the adaptive one ``minimal_compression_rate``, ``maximal_compression_rate``.

    Raises:
        ConfigError: there is no such section, the accuracy does not go with it, or no algorithm
            has a rate that the adaptive loop could drive.
    """
    config = (
        nncf_config if isinstance(nncf_config, NNCFConfig) else NNCFConfig.from_dict(nncf_config)
    )
    section = config.options.accuracy_aware_training
    if section is None:
        raise ConfigError(
            'accuracy_aware_training is not in the configuration. Add it: {"mode": "early_exit", '
            '"params": {"maximal_absolute_accuracy_degradation": 1.0, "maximal_total_epochs": 20}}.'
        )
    kinds: dict[type, type[TrainingLoop]] = {
        EarlyExitOptions: EarlyExitCompressionTrainingLoop,
        AdaptiveOptions: AdaptiveCompressionTrainingLoop,
    }
    return kinds[type(section)](config, compression_ctrl, uncompressed_model_accuracy, **options)


class TrainingLoop:
    """Trains a compressed model until a goal is met or a budget is spent.

    ``lr_updates_needed`` False leaves the learning rate alone after an epoch. ``verbose`` False
    shows nothing. ``dump_checkpoints`` False writes the best models only, so that a run which was
    stopped cannot go on. ``statistics`` has the result.
    """

    mode = ""

    def __init__(
        self,
        nncf_config: NNCFConfig,
        compression_controller: Any,
        uncompressed_model_accuracy: float,
        *,
        lr_updates_needed: bool = True,
        verbose: bool = True,
        dump_checkpoints: bool = True,
    ) -> None:
        section = nncf_config.options.accuracy_aware_training
        if section is None or section.mode != self.mode:
            raise ConfigError(
                f'accuracy_aware_training.mode: {type(self).__name__} needs "{self.mode}", found '
                f"{'no such section' if section is None else repr(section.mode)}. Let "
                "create_accuracy_aware_training_loop choose the loop."
            )
        self.params: Any = section.params
        self.goal = Goal.of(section.params, uncompressed_model_accuracy)
        self.controller = compression_controller
        self._updates_learning_rate = lr_updates_needed
        self._verbose = verbose
        self._dump = dump_checkpoints
        self._progress = Progress()
        names = tuple(child.name for child in compression_controller.child_ctrls)
        params = section.params.model_dump(mode="json")
        self._settings = Settings(self.mode, self.goal, params, names)

    @property
    def statistics(self) -> TrainingLoopStatistics:
        """What the last run came to."""
        best = best_of(self._progress.attempts, highest_rate=self._settings.by_rate)
        return TrainingLoopStatistics.of(self.goal, best, self._progress)

    def run(  # noqa: PLR0913  # the documented signature
        self,
        model: Any,
        train_epoch_fn: Callable[..., Any],
        validate_fn: Callable[..., Any],
        configure_optimizers_fn: Callable[[], Any] | None = None,
        dump_checkpoint_fn: Callable[..., Any] | None = None,
        load_checkpoint_fn: Callable[..., Any] | None = None,
        early_stopping_fn: Callable[[float], Any] | None = None,
        tensorboard_writer: Any = None,
        log_dir: str | Path | None = None,
        update_learning_rate_fn: Callable[..., Any] | None = None,
        *,
        resume: bool = False,
    ) -> Any:
        """Train, and return the model with the weights and the compression of its best epoch.

        Args:
            model: the compressed model, or a wrapper of it (DistributedDataParallel).
            train_epoch_fn: trains for one epoch, ``(compression_ctrl, model, *, epoch, optimizer,
                lr_scheduler)``; what it returns is the loss for ``update_learning_rate_fn``. It calls
                ``compression_ctrl.scheduler.step()`` before each optimizer step and adds
                ``compression_ctrl.loss()``; ``epoch_step()`` has been called.
            validate_fn: returns the metric as a number, ``(model, *, epoch)``. Both functions may
                leave out keywords that they do not need.
            configure_optimizers_fn: returns ``(optimizer, lr_scheduler)``, each one, a list or None;
                called at the start and whenever the compression rate has changed.
            dump_checkpoint_fn: called after each epoch, ``(model, compression_controller,
                accuracy_aware_runner, save_dir)``; a path that it returns is logged.
            load_checkpoint_fn: loads the weights of a best model, ``(model, checkpoint_path)``.
            early_stopping_fn: ends training of a fully compressed model if ``(metric)`` is true.
            tensorboard_writer: gets the numbers of each epoch; None: one is made, if TensorBoard is
                there.
            log_dir: a folder for each run is made in ``<log_dir>/accuracy_aware_training``; None:
                in ``runs``.
            update_learning_rate_fn: called after each epoch instead of the LR scheduler's ``step()``,
                ``(lr_scheduler, epoch, metric, loss)``.
            resume: go on with the latest run in ``log_dir`` from its last saved epoch, as if it had
                never stopped; begin a new one if there is none.

        Raises:
            TrainingError: a function cannot be called so, or returns what it should not; before
                the first epoch.
            CheckpointError: the run to go on with has other settings, or its file is damaged.
        """
        calls = Calls(
            *(train_epoch_fn, validate_fn, configure_optimizers_fn, dump_checkpoint_fn),
            *(load_checkpoint_fn, early_stopping_fn, update_learning_rate_fn),
        )
        runner = Runner(model, self.controller, calls, self._settings, dump=self._dump)
        shown = self._verbose and runner.is_main
        with (
            runner.open(log_dir, resume=resume, writer=tensorboard_writer),
            Display(self.goal, self.params, shown=shown, can_resume=self._dump) as display,
        ):
            try:
                self._run(runner, display, resume=resume)
            finally:
                self._progress = runner.progress
        return model

    def _run(self, runner: Runner, display: Display, *, resume: bool) -> None:
        runner.configure()
        if not (resume and runner.restore() is not None):
            self._begin(runner)
            self._take(runner, trained=False)
        display.begin(runner.progress, runner.folder)
        while not runner.progress.finished:
            self._prepare_epoch(runner)
            if runner.progress.finished:
                runner.save()
                break
            runner.train_epoch()
            self._take(runner, trained=True)
            display.show(runner.progress)
        best = best_of(runner.progress.attempts, highest_rate=self._settings.by_rate)
        assert best is not None  # the model was judged before the first epoch
        runner.load(best)
        display.end(runner.progress, best)

    def _take(self, runner: Runner, *, trained: bool) -> None:
        """Judge the model as it is, and save what has been come to."""
        attempt = runner.judge(self.goal, trained=trained)
        attempt = runner.keep_if_best(attempt, by_rate=self._settings.by_rate)
        search = runner.progress.search
        if search is not None:
            search = search.after_epoch(attempt.met)
        runner.progress = replace(runner.progress.with_attempt(attempt), search=search)
        if trained and self._updates_learning_rate:
            runner.update_learning_rate()
        runner.progress = replace(runner.progress, finished=self._end(runner))
        runner.draw()
        runner.save()

    def _end(self, runner: Runner) -> str:
        """Return why training is over, or nothing."""
        progress, minutes = runner.progress, self.params.maximal_total_minutes
        if progress.epochs >= self.params.maximal_total_epochs:
            return f"all {self.params.maximal_total_epochs} epochs are trained"
        if minutes is not None and progress.seconds >= 60 * minutes:
            return f"{minutes:g} minutes are over"
        last = progress.attempts[-1]
        stop = runner.calls.early_stopping_fn
        is_whole = last.stage is CompressionStage.FULLY_COMPRESSED
        if stop is not None and is_whole and runner.framework.agreed(bool(stop(last.metric))):
            return "early_stopping_fn ended it"
        return ""

    def _begin(self, runner: Runner) -> None:
        """Prepare a new run, before the model is judged for the first time."""

    def _prepare_epoch(self, runner: Runner) -> None:
        """Change what the next epoch trains, or finish."""


class EarlyExitCompressionTrainingLoop(TrainingLoop):
    """Trains until the fully compressed model is good enough, and no longer."""

    mode = "early_exit"

    def _end(self, runner: Runner) -> str:
        if runner.progress.attempts[-1].met:
            return "the goal is met"
        return super()._end(runner)


class AdaptiveCompressionTrainingLoop(TrainingLoop):
    """Searches for the highest compression rate whose model is good enough.

    It begins with the schedule of the configuration, for ``initial_training_phase_epochs`` or until
    the goal is met; then ``Search`` sets the rate, each time on the best model so far.
    """

    mode = "adaptive_compression_level"
    params: AdaptiveParams

    def __init__(
        self,
        nncf_config: NNCFConfig,
        compression_controller: Any,
        uncompressed_model_accuracy: float,
        *,
        minimal_compression_rate: float = 0.0,
        maximal_compression_rate: float = 0.95,
        **options: Any,
    ) -> None:
        super().__init__(
            nncf_config, compression_controller, uncompressed_model_accuracy, **options
        )
        rated = [child for child in compression_controller.child_ctrls if child.level is not None]
        if len(rated) != 1:
            found = ", ".join(f'"{child.name}"' for child in rated) or "none"
            raise ConfigError(
                'accuracy_aware_training.mode = "adaptive_compression_level" drives one algorithm '
                f'that has a compression rate, found {found}. Keep one, or write "mode": "early_exit".'
            )
        highest = min(maximal_compression_rate, rated[0].maximal_compression_rate)
        if not 0 <= minimal_compression_rate <= highest:
            raise ConfigError(
                f"minimal_compression_rate = {minimal_compression_rate:g}: expected a number from 0 to "
                f"the highest rate, {highest:g}."
            )
        params = self.params
        self._limits = Limits(
            minimal_rate=minimal_compression_rate,
            maximal_rate=highest,
            patience=params.patience_epochs,
            step_reduction=params.compression_rate_step_reduction_factor,
            lr_reduction=params.lr_reduction_factor,
            minimal_step=params.minimal_compression_rate_step,
            second_step=max(
                params.minimal_compression_rate_step,
                params.initial_compression_rate_step
                * params.compression_rate_step_reduction_factor,
            ),
        )

    def _begin(self, runner: Runner) -> None:
        target = self.params.target
        if target is None:
            return
        runner.drive()
        rate = runner.least_rate(target, (self._limits.minimal_rate, self._limits.maximal_rate))
        runner.set_rate(rate)
        runner.progress = Progress(search=Search(rate, step=0.0, direction=1))

    def _end(self, runner: Runner) -> str:
        if self.params.target is not None and runner.progress.attempts[-1].met:
            return "the target and the goal are met"
        return super()._end(runner)

    def _prepare_epoch(self, runner: Runner) -> None:
        if self.params.target is not None:
            return
        progress = runner.progress
        if progress.search is None:
            last = progress.attempts[-1]
            if not last.met and progress.epochs < self.params.initial_training_phase_epochs:
                return
            runner.drive()
            progress = progress.restaged(self.controller.compression_stage())
            start = self.params.initial_compression_rate_step
            search = Search(rate=last.rate or 0.0, step=start, met=last.budget >= 0)
        else:
            search = progress.search
        if not search.is_due(self._limits):
            return
        search = search.next_rate(self._limits)
        runner.progress = replace(progress, search=search, finished=search.finished)
        if search.finished:
            return
        best = best_of(progress.attempts, highest_rate=True)
        assert best is not None  # the model was judged before the first epoch
        runner.load(best)
        runner.set_rate(search.rate)
        runner.progress = replace(
            runner.progress, search=replace(search, reached=runner.rate or 0.0)
        )
        runner.configure(search.lr_factor)
