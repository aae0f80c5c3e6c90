# SPDX-License-Identifier: Apache-2.0
"""Targets of the deployed file: the least compression rate whose file is small or fast enough."""

from __future__ import annotations

import importlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nncf.compression.parity import Tolerance
from nncf.config.accuracy_aware import TargetOptions
from nncf.errors import ConfigError

_LOGGER = logging.getLogger("nncf")

_RUNTIMES = {
    "onnxruntime": ("nncf.onnx.run", "OnnxFile", "model.onnx"),
    "openvino": ("nncf.openvino.run", "OpenVINOFile", "model.xml"),
}
_UNITS = {"size_bytes": "bytes", "latency_ms": "ms"}

_CALLS, _WARM_UP, _SECONDS = 200, 10, 2.0
"""Of a measured latency: calls that count, calls before them, and when it is enough."""

_FINENESS = 0.01
"""Rates closer than this are not told apart."""

_UNTRAINED = Tolerance(levels=1 << 8, flips=1.0, local=float("inf"), output=float("inf"))
"""Files are measured before training; what is written afterwards is proven as always."""


def measure(controller: Any, target: TargetOptions) -> float:
    """Return the size or the latency of the file of a model as it is now; the model stays."""
    home, name, file = _RUNTIMES[target.runtime]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        controller.export_model(str(path), tolerance=_UNTRAINED)
        if target.type == "size_bytes":
            return float(sum(part.stat().st_size for part in Path(folder).iterdir()))
        opened = getattr(importlib.import_module(home), name)(path, threads=target.threads)
        return _median_milliseconds(opened)


def _median_milliseconds(file: Any) -> float:
    inputs, times = file.zeros(), []
    for _ in range(_WARM_UP):
        file(inputs)
    end = time.perf_counter() + _SECONDS
    while len(times) < _CALLS and (len(times) < 20 or time.perf_counter() < end):
        start = time.perf_counter()
        file(inputs)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def least_rate(
    target: TargetOptions, bounds: tuple[float, float], value_at: Callable[[float], float]
) -> float:
    """Return the least rate within ``bounds`` whose value meets the target, by bisection.

    Raises ConfigError, which names the nearest possible, where the highest rate does not meet it.
    """
    low, high = bounds
    unit = _UNITS[target.type]

    def shown(rate: float) -> float:
        value = value_at(rate)
        _LOGGER.info("Target: at rate %.3f the file comes to %.6g %s", rate, value, unit)
        return value

    nearest = shown(high)
    if nearest > target.value:
        raise ConfigError(
            f"accuracy_aware_training.params.target: {target.value:g} {unit} in {target.runtime} "
            f"cannot be reached: the nearest is {nearest:.6g} {unit}, at the highest rate, {high:.3f}. "
            "Raise the value, or choose an algorithm that removes channels, which makes files smaller "
            "and faster, or one that gives weights fewer bits: zeros do neither."
        )
    if shown(low) <= target.value:
        return low
    while high - low > _FINENESS:
        middle = (low + high) / 2
        if shown(middle) <= target.value:
            high = middle
        else:
            low = middle
    return high
