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
CUT = [pytest.param(case, name, id=f"{case.name}-{name}")
       for case in CASES for name in case.models[:1]]  # fmt: skip


def run(command: list[str], root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def differences(one: Any, other: Any) -> list[str]:
    """Return the parts of two checkpoints that are not the same to the last bit."""
    return [key for key in one if not same(one[key], other[key])]


@pytest.mark.parametrize(("case", "model"), CUT)
def test_resumed_run_repeats_every_bit(case: Case, model: str, tmp_path: Path, root: Path) -> None:
    """2N steps give the bits of N steps, save, new process, load, N steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train(case.name, model, range(WHOLE))
    torch.save(train(case.name, model, range(HALF)), tmp_path / "half.pt")
    torch.set_num_threads(threads)
    arguments = f"{HALF}:{WHOLE}:{tmp_path}/half.pt:{tmp_path}/end.pt"
    run([MODULE, case.name, model, arguments], root)
    assert differences(whole, torch.load(tmp_path / "end.pt", weights_only=True)) == []


@pytest.mark.parametrize(("case", "model"), CUT)
def test_resumed_parallel_run_repeats_every_bit(
    case: Case, model: str, tmp_path: Path, root: Path
) -> None:
    """The same with two processes of torchrun, whose parameters agree all the way."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", MODULE]
    first = [f"0:{WHOLE}::{tmp_path}/whole{{rank}}.pt", f"0:{HALF}::{tmp_path}/half{{rank}}.pt",
             f"0:0::{tmp_path}/start{{rank}}.pt"]  # fmt: skip
    run([*torchrun, case.name, model, *first], root)
    second = f"{HALF}:{WHOLE}:{tmp_path}/half{{rank}}.pt:{tmp_path}/end{{rank}}.pt"
    run([*torchrun, case.name, model, second], root)

    def load(name: str) -> dict[str, Any]:
        return torch.load(tmp_path / name, weights_only=True)

    for moment in ("start", "half", "whole"):
        one, other = load(f"{moment}0.pt"), load(f"{moment}1.pt")
        trained = [key for key in one["model"] if "running_" not in key]
        assert [key for key in trained if not same(one["model"][key], other["model"][key])] == []
    for rank in (0, 1):
        assert differences(load(f"whole{rank}.pt"), load(f"end{rank}.pt")) == []
    assert differences(load("start0.pt"), load("whole0.pt")) != []
