# SPDX-License-Identifier: Apache-2.0
"""What every test gets: fixed seeds, few threads, a folder of its own to run in."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Read by the frameworks when they are first imported, which is after this file.
_THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.setdefault("OMP_NUM_THREADS", _THREADS)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Child processes that tests start see the same code as the tests.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "src"), str(ROOT)] + [path for path in [os.environ.get("PYTHONPATH")] if path]
)


def pytest_configure(config: pytest.Config) -> None:
    """Leave slow tests out, unless ``-m`` decides or a test is asked for by its name."""
    named = any("::" in argument for argument in config.args)
    if not config.option.markexpr and not named:
        config.option.markexpr = "not slow"


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Seed every generator and run in an empty folder, where logs and graphs do no harm.

    PyTorch is seeded only where a test file has imported it: the tests of the rooms without a
    framework need not wait for one.
    """
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002 (users' loaders draw from this generator)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root() -> Path:
    """Return the folder of the repository."""
    return ROOT
