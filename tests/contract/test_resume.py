# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped and resumed in a new process repeats every bit, alone and in parallel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract.cases import CASES, Case
from tests.contract.comparing import same
from tests.contract.training import train

HALF, WHOLE = 3, 6  # three epochs of two steps: the cut is in the middle of the second
MODULE = "tests.contract.training"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
ROOT = Path(__file__).resolve().parents[2]

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def run(launcher: list[str], runs: list[str]) -> None:
    """Make training runs in processes of their own, those of all cases in the same ones."""
    command = [sys.executable, "-m", *launcher, MODULE, *runs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def planned(case: Case, first: int, last: int, before: Path | str, out: Path) -> str:
    return f"{case.name}:{case.models[0]}:{first}:{last}:{before}:{out}"


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def differences(one: Any, other: Any) -> list[str]:
    """Return the parts of two checkpoints that are not the same to the last bit."""
    return [key for key in one if not same(one[key], other[key])]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoints of a whole run and of the two halves of another."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for case in CASES:
        for name, steps in {"whole": WHOLE, "half": HALF}.items():
            torch.save(
                train(case.name, case.models[0], range(steps)), folder / f"{case.name}-{name}.pt"
            )
    torch.set_num_threads(threads)
    run([], [planned(case, HALF, WHOLE, folder / f"{case.name}-half.pt", folder / f"{case.name}-end.pt")
             for case in CASES])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a folder of two processes of torchrun, with checkpoints of each rank."""
    folder = tmp_path_factory.mktemp("parallel")
    paths = {(c.name, part): folder / f"{c.name}-{part}-{{rank}}.pt"
             for c in CASES for part in ("start", "half", "whole", "end")}  # fmt: skip
    moments = {"start": 0, "half": HALF, "whole": WHOLE}
    run(TORCHRUN, [planned(case, 0, last, "", paths[case.name, part])
                   for case in CASES for part, last in moments.items()])  # fmt: skip
    run(TORCHRUN, [planned(case, HALF, WHOLE, paths[case.name, "half"], paths[case.name, "end"])
                   for case in CASES])  # fmt: skip
    return folder


@every_case
def test_resumed_run_repeats_every_bit(case: Case, alone: Path) -> None:
    """2N steps give the bits of N steps, save, new process, load, N steps."""
    whole, half, end = (load(alone / f"{case.name}-{part}.pt") for part in ("whole", "half", "end"))
    assert differences(whole, end) == []
    assert set(differences(whole, half)) >= {"model", "optimizer", "compression_state"}


@every_case
def test_resumed_parallel_run_repeats_every_bit(case: Case, parallel: Path) -> None:
    """The same with DistributedDataParallel, on each rank."""
    for rank in (0, 1):
        whole, end = (load(parallel / f"{case.name}-{part}-{rank}.pt") for part in ("whole", "end"))
        assert differences(whole, end) == []


@every_case
def test_ranks_agree(case: Case, parallel: Path) -> None:
    """From different weights and data, all ranks have the same ranges and weights all the way."""
    for part in ("start", "half", "whole", "end"):
        one, other = (load(parallel / f"{case.name}-{part}-{rank}.pt")["model"] for rank in (0, 1))
        learned = [key for key in one if "running_" not in key]  # each rank sees its own batches
        assert any(".compression." in key for key in learned) == case.adds_state
        assert [key for key in learned if not same(one[key], other[key])] == []
