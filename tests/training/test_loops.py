# SPDX-License-Identifier: Apache-2.0
"""The loops on a real network: what they train, return, write and refuse."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf.common.accuracy_aware_training import create_accuracy_aware_training_loop
from nncf.compression.stage import CompressionStage
from nncf.errors import ConfigError, TrainingError
from tests.training import models

EARLY, ADAPTIVE = "early_exit", "adaptive_compression_level"


class Script:
    """A training script whose validation returns given metrics, and which counts its calls."""

    def __init__(
        self, *algorithms: Any, metrics: Any = None, mode: str = EARLY, **params: Any
    ) -> None:
        self.config = models.config(*(algorithms or (models.QUANTIZATION,)), mode=mode, **params)
        self.controller, self.model = models.compressed(self.config)
        self.metrics = iter(metrics) if metrics is not None else None
        self.trained: list[dict[str, Any]] = []

    def loop(self, accuracy: float = 90.0, **options: Any) -> Any:
        return create_accuracy_aware_training_loop(
            self.config, self.controller, accuracy, **options
        )

    def train(self, compression_ctrl: Any, model: nn.Module, **keywords: Any) -> float:
        self.trained.append({**keywords, "rate": compression_ctrl.compression_rate})
        with torch.no_grad():  # each epoch leaves a mark in the weights
            model.last.bias.fill_(float(len(self.trained)))
        return 0.5

    def validate(self, model: nn.Module) -> float:
        return models.accuracy(model) if self.metrics is None else next(self.metrics)

    def run(self, loop: Any = None, **options: Any) -> Any:
        self.ran = loop or self.loop()
        return self.ran.run(
            self.model, train_epoch_fn=self.train, validate_fn=self.validate, **options
        )

    @property
    def mark(self) -> float:
        """How many epochs the model that was returned had been trained, if it was."""
        return self.model.last.bias[0].item()

    @property
    def folder(self) -> Path:
        (found,) = Path("runs/accuracy_aware_training").iterdir()
        return found


# --- early exit --------------------------------------------------------------------------------


def test_good_enough_from_the_start_is_not_trained() -> None:
    """The model is judged before the first epoch, and returned if it meets the goal."""
    script = Script(metrics=[89.0])
    assert script.run() is script.model
    assert script.trained == []
    assert script.ran.statistics.met
    assert script.ran.statistics.finished == "the goal is met"


def test_training_ends_with_the_first_good_epoch() -> None:
    """No epoch is trained after the goal is met, and the model is that of this epoch."""
    script = Script(metrics=[50.0, 60.0, 88.5, 99.0])
    script.run()
    assert [call["epoch"] for call in script.trained] == [0, 1]
    statistics = script.ran.statistics
    assert (statistics.compressed_accuracy, statistics.accuracy_budget) == (88.5, 0.5)
    assert statistics.absolute_accuracy_degradation == 1.5
    assert statistics.relative_accuracy_degradation == pytest.approx(100 / 60)
    assert script.mark == 2.0


def test_best_of_all_is_returned_when_none_is_good_enough(caplog: Any) -> None:
    """After all epochs the model is the nearest to the goal, and a warning says so."""
    script = Script(metrics=[50.0, 60.0, 70.0, 65.0], maximal_total_epochs=3)
    script.run()
    assert script.mark == 2.0
    assert not script.ran.statistics.met
    assert "Could not produce a compressed model satisfying" in caplog.text


def test_lower_metrics_can_be_better() -> None:
    """With a loss the lowest is the best, from the first epoch on."""
    params = {"higher_is_better": False, "maximal_absolute_accuracy_degradation": 0.1}
    script = Script(metrics=[2.0, 1.4, 1.2, 1.3], maximal_total_epochs=3, **params)
    script.run(script.loop(1.0))
    assert script.mark == 2.0
    assert script.ran.statistics.accuracy_budget == pytest.approx(-0.1)
    script = Script(metrics=[2.0, 1.05], **params)
    script.run(script.loop(1.0), log_dir="other")
    assert script.ran.statistics.met
    assert script.ran.statistics.absolute_accuracy_degradation == pytest.approx(0.05)


def test_partly_compressed_models_do_not_count() -> None:
    """While the schedule is on its way, a good metric ends nothing; the result is fully compressed."""
    slow = {**models.MAGNITUDE["params"], "sparsity_target_epoch": 3, "sparsity_freeze_epoch": 4}
    sparsity = {"algorithm": "magnitude_sparsity", "params": slow}
    script = Script(sparsity, metrics=[95.0, 95.0, 94.0, 93.0, 91.0], maximal_total_epochs=8)
    script.run()
    stages = [attempt.stage for attempt in script.ran.statistics.attempts]
    assert stages[-1] is CompressionStage.FULLY_COMPRESSED
    assert CompressionStage.FULLY_COMPRESSED not in stages[:-1]
    assert script.ran.statistics.compression_rate == pytest.approx(0.4)
    assert script.controller.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_nan_does_not_end_the_run(caplog: Any) -> None:
    """An epoch that diverged counts as not good enough, in the log of the run too."""
    script = Script(metrics=[50.0, math.nan, 89.0])
    script.run()
    assert script.mark == 2.0
    assert "returned NaN" in caplog.text
    log = json.loads((script.folder / "attempts.json").read_text())
    assert log["attempts"][1]["metric"] is None


def test_early_stopping_function_ends_training() -> None:
    """It is asked about fully compressed models."""
    script = Script(metrics=[50.0, 60.0, 70.0])
    script.run(early_stopping_fn=lambda metric: metric == 60.0)
    assert len(script.trained) == 1
    assert script.ran.statistics.finished == "early_stopping_fn ended it"


def test_minutes_are_a_budget() -> None:
    """The epoch during which time runs out is the last."""
    script = Script(metrics=[50.0, 60.0], maximal_total_minutes=1e-9)
    script.run()
    assert script.ran.statistics.finished == "1e-09 minutes are over"


# --- the adaptive level ------------------------------------------------------------------------


def test_search_changes_the_rate_between_epochs() -> None:
    """After the schedule's phase the rate climbs while the goal is met, from the best model."""
    script = Script(
        models.MAGNITUDE,
        metrics=[95.0, 95.0, 95.0, 95.0, 80.0, 95.0, 80.0],
        mode=ADAPTIVE,
        maximal_total_epochs=6,
    )
    script.run()
    rates = [attempt.rate for attempt in script.ran.statistics.attempts]
    assert rates == pytest.approx([0.0, 0.0, 0.4, 0.5, 0.6, 0.55, 0.575], abs=0.01)
    assert script.ran.statistics.compression_rate == pytest.approx(0.55)
    assert script.mark == 5.0
    assert script.controller.child_ctrls[0].sparsity_level == pytest.approx(0.55)
    zeros = script.controller.statistics().magnitude_sparsity.model_statistics
    assert zeros.sparsity_level_for_layers == pytest.approx(0.55, abs=0.001)


@pytest.mark.parametrize(
    "algorithms",
    [[models.PRUNING, models.QUANTIZATION], [models.MAGNITUDE], [models.RB], [models.BITS]],
)
def test_search_on_real_metrics(algorithms: list[dict[str, Any]]) -> None:
    """Each algorithm with a rate: what is returned meets the goal, is at its rate, and strips."""
    torch.set_num_threads(1)
    params = {"maximal_absolute_accuracy_degradation": 6.0, "maximal_total_epochs": 12}
    script = Script(*algorithms, mode=ADAPTIVE, patience_epochs=2, **params)
    script.train = models.train_epoch
    base = models.trained()[1]
    configure = models.optimizers(script.model, 3e-3)
    script.run(script.loop(base), configure_optimizers_fn=configure)
    statistics = script.ran.statistics
    assert statistics.met
    assert statistics.compressed_accuracy == models.accuracy(script.model) >= base - 6
    highest = max(a.rate for a in statistics.attempts if a.met)
    assert statistics.compression_rate == highest > 0.1
    assert models.accuracy(script.controller.strip()) == statistics.compressed_accuracy


def test_learning_rates_shrink_where_the_search_turns() -> None:
    """Optimizers are made anew at each rate, their learning rates and schedules times the factor."""
    metrics = [95.0, 95.0, 95.0, 80.0, 95.0, 80.0]
    script = Script(models.MAGNITUDE, metrics=metrics, mode=ADAPTIVE, maximal_total_epochs=5)
    script.run(configure_optimizers_fn=models.optimizers(script.model, 0.1))
    seen = [
        (c["optimizer"].param_groups[0]["lr"], c["lr_scheduler"].base_lrs[0])
        for c in script.trained
    ]
    assert [base for _, base in seen] == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.025])
    ids = [id(call["optimizer"]) for call in script.trained]
    assert ids[0] == ids[1]
    assert len(set(ids[1:])) == 4


def test_bounds_of_the_rate() -> None:
    """The highest rate that may be tried ends the search when it is good enough."""
    script = Script(models.MAGNITUDE, metrics=[95.0] * 9, mode=ADAPTIVE)
    script.run(script.loop(maximal_compression_rate=0.45))
    assert script.ran.statistics.compression_rate == pytest.approx(0.45)
    with pytest.raises(ConfigError, match=r"minimal_compression_rate = 0.9: expected"):
        script.loop(minimal_compression_rate=0.9, maximal_compression_rate=0.5)


# --- what is written ---------------------------------------------------------------------------


def test_folder_of_a_run() -> None:
    """It holds the last and the best models with the documented keys, and the log of attempts."""
    script = Script(models.MAGNITUDE, metrics=[95.0] * 4 + [80.0] * 9, mode=ADAPTIVE)
    script.run(configure_optimizers_fn=models.optimizers(script.model))
    names = {path.name for path in script.folder.iterdir()}
    assert "acc_aware_checkpoint_last.pth" in names
    assert "acc_aware_checkpoint_best_0.500.pth" in names
    best = torch.load(script.folder / "acc_aware_checkpoint_best_0.500.pth", weights_only=True)
    assert {"epoch", "state_dict", "compression_state", "best_metric_val"} <= best.keys()
    assert {"current_val_metric_value", "optimizer"} <= best.keys()
    controller, model = nncf.create_compressed_model(
        models.Net(), script.config, compression_state=best["compression_state"], dump_graphs=False
    )
    nncf.load_state(model, best["state_dict"], is_resume=True)
    assert controller.child_ctrls[0].sparsity_level == pytest.approx(0.5)
    log = json.loads((script.folder / "attempts.json").read_text())
    assert log["goal"] == {"uncompressed": 90.0, "tolerable": 88.0, "higher_is_better": True}
    assert [attempt["epoch"] for attempt in log["attempts"]] == list(range(len(log["attempts"])))


def test_functions_of_the_user_are_called_as_documented() -> None:
    """Checkpoints are dumped and loaded, learning rates updated, by the user's own functions."""
    script, seen = Script(metrics=[50.0, 60.0, 70.0], maximal_total_epochs=2), []

    def dump(
        model: Any, compression_controller: Any, accuracy_aware_runner: Any, save_dir: str
    ) -> str:
        runner = accuracy_aware_runner
        seen.append((runner.cumulative_epoch_count, runner.best_val_metric_value, save_dir))
        assert model is script.model
        assert compression_controller is script.controller
        return "somewhere"

    def load(model: nn.Module, checkpoint_path: str) -> None:
        seen.append(Path(checkpoint_path).name)
        model.load_state_dict(torch.load(checkpoint_path, weights_only=True)["state_dict"])

    updates: list[Any] = []
    script.run(
        dump_checkpoint_fn=dump,
        load_checkpoint_fn=load,
        update_learning_rate_fn=lambda *told: updates.append(told),
    )
    folder = str(script.folder.absolute())
    assert seen == [
        *((n, 50.0 + 10 * n, folder) for n in range(3)),
        "acc_aware_checkpoint_best.pth",
    ]
    assert updates == [(None, 1, 60.0, 0.5), (None, 2, 70.0, 0.5)]


def test_without_dumping_only_the_best_are_written() -> None:
    """Nothing is left that a stopped run could go on from."""
    script = Script(metrics=[50.0, 60.0], maximal_total_epochs=1)
    script.run(script.loop(dump_checkpoints=False))
    names = {path.name for path in script.folder.iterdir() if path.suffix == ".pth"}
    assert names == {"acc_aware_checkpoint_best.pth"}


class Writer:
    """Stands for a TensorBoard writer."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.setdefault(tag, []).append((step, value))


def test_numbers_for_tensorboard() -> None:
    """The documented tags get a value after each epoch; the rate and step of the search too."""
    script, writer = (
        Script(models.MAGNITUDE, metrics=[95.0] * 5, mode=ADAPTIVE, maximal_total_epochs=4),
        Writer(),
    )
    script.run(tensorboard_writer=writer)
    assert writer.scalars["val/accuracy_aware/metric_value"] == [(n, 95.0) for n in range(5)]
    assert writer.scalars["val/accuracy_aware/accuracy_budget"] == [(n, 7.0) for n in range(5)]
    rates = writer.scalars["compression/accuracy_aware/target_compression_rate"]
    assert [step for step, _ in rates] == [3, 4]
    assert [value for _, value in rates] == pytest.approx([0.5, 0.6])
    assert "compression/accuracy_aware/compression_rate_step" in writer.scalars
    assert "compression/statistics/magnitude_sparsity/sparsity_level_for_model" in writer.scalars


def test_verbose_false_is_silent(caplog: Any) -> None:
    """Epochs are lines of the log, unless they are not wanted."""
    caplog.set_level(logging.INFO, "nncf")
    script = Script(metrics=[50.0, 89.0])
    script.run()
    assert "epoch 1 of 8: metric 89" in caplog.text
    caplog.clear()
    script = Script(metrics=[50.0, 89.0])
    script.run(script.loop(verbose=False), log_dir="other")
    assert "epoch" not in caplog.text


# --- what is refused ---------------------------------------------------------------------------


def test_no_section_is_refused() -> None:
    """The message shows a section."""
    script = Script()
    del script.config["accuracy_aware_training"]
    with pytest.raises(ConfigError, match="Add it: "):
        script.loop()


def test_accuracy_in_other_units_is_refused() -> None:
    """A drop of 2 points of 0.9 is refused before anything is trained."""
    with pytest.raises(ConfigError, match="tolerates any model"):
        Script().loop(0.9)


@pytest.mark.parametrize("returned", [None, (76.0, 93.0), "76", torch.zeros(3)])
def test_validation_without_a_number_is_refused(returned: Any) -> None:
    """Before the first epoch, and with what was returned."""
    script = Script()
    script.validate = lambda model: returned
    with pytest.raises(TrainingError, match=r"validate_fn returned .*: expected one number"):
        script.run()
    assert script.trained == []


def test_functions_that_cannot_be_called_are_refused() -> None:
    """Each by its name, with how it is called, before anything runs."""
    script = Script()
    loop = script.loop()
    with pytest.raises(
        TrainingError, match=r"validate_fn = 3: expected a function .*validate_fn\(model"
    ):
        loop.run(script.model, script.train, 3)
    with pytest.raises(TrainingError, match=r"train_epoch_fn.* cannot be called as"):
        loop.run(script.model, lambda model: None, script.validate)
    with pytest.raises(TrainingError, match="expected a pair"):
        script.run(configure_optimizers_fn=lambda: torch.optim.SGD(script.model.parameters(), 0.1))
    with pytest.raises(TrainingError, match="as optimizer: expected"):
        script.run(configure_optimizers_fn=lambda: (3, None), log_dir="other")


def test_controller_without_a_rate_is_refused() -> None:
    """The adaptive loop names what it found."""
    script = Script(models.MAGNITUDE, mode=ADAPTIVE)
    controller, _ = models.compressed(models.config(models.QUANTIZATION, mode=EARLY))
    with pytest.raises(
        ConfigError, match="drives one algorithm that has a compression rate, found none"
    ):
        create_accuracy_aware_training_loop(script.config, controller, 90.0)


def test_schedule_stepped_twice_is_warned_of(caplog: Any) -> None:
    """A train function that calls epoch_step() itself is told to leave it."""
    script = Script(metrics=[50.0, 89.0])
    train = script.train

    def stepping(compression_ctrl: Any, model: nn.Module) -> None:
        compression_ctrl.scheduler.epoch_step()
        train(compression_ctrl, model)

    script.train = stepping
    script.run()
    assert "calls scheduler.epoch_step()" in caplog.text
