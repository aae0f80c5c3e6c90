# SPDX-License-Identifier: Apache-2.0
"""A run that is killed goes on, and ends as if it had never stopped."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nncf.errors import CheckpointError
from nncf.training import create_accuracy_aware_training_loop
from tests.training import models
from tests.training.run_aware import main


def script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.training.run_aware", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)


def killed_until_it_ends(
    root: Path, folder: Path, kind: str, seed: int
) -> tuple[dict[str, Any], int]:
    """Run a script that is killed after random times; return what it printed, and the kills."""
    random_numbers = random.Random(seed)
    for kills in range(200):
        # mostly short: the loop's epochs take tenths of a second, its files hundredths
        seconds = f"{random_numbers.uniform(0.05, 1.5 + 0.2 * kills):.3f}"
        ran = script(root, str(folder), kind, seconds)
        if ran.returncode == 0:
            return json.loads(ran.stdout.splitlines()[-1]), kills
        assert ran.returncode == -9, ran.stderr
        assert not list(folder.rglob("*.json.*"))
    raise AssertionError("the run never ends")


@pytest.mark.parametrize("kind", ["pruning"])
def test_killed_run_ends_as_an_unkilled_one(root: Path, tmp_path: Path, kind: str) -> None:
    """Weights and attempts are the same to the bit, wherever the process was killed."""
    whole = script(root, str(tmp_path / "whole"), kind)
    assert whole.returncode == 0, whole.stderr
    result, kills = killed_until_it_ends(root, tmp_path / "killed", kind, seed=1)
    assert kills > 0
    assert result == json.loads(whole.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["pruning", "magnitude", "rb", "bits"])
def test_killed_twenty_times(root: Path, tmp_path: Path, kind: str) -> None:
    """The same for every algorithm with a rate, and twenty kills or more."""
    whole = json.loads(script(root, str(tmp_path / "whole"), kind).stdout.splitlines()[-1])
    total, seed = 0, 0
    while total < 20:
        result, kills = killed_until_it_ends(root, tmp_path / f"killed{seed}", kind, seed)
        assert result == whole
        total, seed = total + kills, seed + 1


class Interruption(KeyboardInterrupt):
    """Ctrl-C in a function of the user."""


def run(folder: Path, *, stop_in_epoch: int = -1, resume: bool = True, **params: Any) -> Any:
    """Run the adaptive loop, stopped in the middle of an epoch; return loop and model."""
    torch.set_num_threads(1)
    accuracy = models.trained()[1]
    torch.manual_seed(3)
    params = {"maximal_absolute_accuracy_degradation": 3.0, **params}
    config = models.config(models.MAGNITUDE, mode="adaptive_compression_level", **params)
    controller, model = models.compressed(config)
    loop = create_accuracy_aware_training_loop(config, controller, accuracy)

    def train(compression_ctrl: Any, model: Any, optimizer: Any, epoch: int) -> float:
        if epoch == stop_in_epoch:
            models.train_epoch(compression_ctrl, model, optimizer)
            raise Interruption
        return models.train_epoch(compression_ctrl, model, optimizer)

    loop.run(
        *(model, train, models.accuracy, models.optimizers(model)), log_dir=folder, resume=resume
    )
    return loop, model


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_stopped_run_goes_on(tmp_path: Path, epoch: int, caplog: Any) -> None:
    """What was trained of the epoch is trained again, with the same random numbers."""
    whole, expected = run(tmp_path / "whole")
    caplog.set_level("INFO", "nncf")
    with pytest.raises(Interruption):
        run(tmp_path / "stopped", stop_in_epoch=epoch)
    assert f"Stopped after epoch {epoch}. run(…, resume=True)" in caplog.text
    again, model = run(tmp_path / "stopped")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    metrics = [[a.metric for a in loop.statistics.attempts] for loop in (whole, again)]
    assert metrics[0] == metrics[1]


def test_run_that_has_ended_returns_its_result(tmp_path: Path) -> None:
    """Nothing is trained; the best model comes back."""
    _, expected = run(tmp_path)
    loop, model = run(tmp_path, stop_in_epoch=0)
    assert loop.statistics.met
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_new_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    """Without ``resume`` nothing of an earlier run is read or overwritten."""
    run(tmp_path, resume=False)
    run(tmp_path, resume=False)
    assert len(list((tmp_path / "accuracy_aware_training").iterdir())) == 2


def test_nothing_to_go_on_with_begins_anew(tmp_path: Path, caplog: Any) -> None:
    """The first call may say ``resume`` as well."""
    caplog.set_level("INFO", "nncf")
    run(tmp_path)
    assert "holds no run to go on with" in caplog.text


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """A run goes on with the goal and the budgets that it began with."""
    run(tmp_path)
    with pytest.raises(CheckpointError, match=r"other settings: .*'tolerable'"):
        run(tmp_path, maximal_absolute_accuracy_degradation=5.0)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    """The message names the file and says how to begin anew."""
    run(tmp_path)
    (path,) = tmp_path.rglob("acc_aware_checkpoint_last.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="start anew with resume=False"):
        run(tmp_path)


def test_script_of_these_tests_runs_here(tmp_path: Path, capsys: Any) -> None:
    """It prints a digest and the attempts."""
    main(str(tmp_path), "magnitude")
    assert json.loads(capsys.readouterr().out)["attempts"]
