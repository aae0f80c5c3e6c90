# SPDX-License-Identifier: Apache-2.0
"""What every figure comes with: the machine it was measured on, its spread, and a JSON record."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Return where a figure is measured: processor, cores, versions, threads and load."""
    load = [round(value, 1) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "load_1_5_15_minutes": load,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def find(folder: Path, pattern: str) -> Path:
    """Return the first file of a folder that fits a pattern. Ends the program when none does."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise SystemExit(f"{folder}: expected a file {pattern} in this folder (see --help)")
    return found[0]


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation of a sample; 0 for a single value."""
    found = list(values)
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a markdown table with columns of even width."""
    lines = [list(header), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def write(path: Path | None, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, whole or not at all; do nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def measure_each(
    measure: Callable[[str, Path, argparse.Namespace], Any], arguments: argparse.Namespace
) -> None:
    """Call ``measure(name, empty folder, arguments)`` for each of ``arguments.networks``.

    What is found so far goes to ``arguments.output`` after every network.
    """
    results: dict[str, Any] = {}
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, Path(folder), arguments)
        write(arguments.output, {"machine": machine(), "results": results})
