# SPDX-License-Identifier: Apache-2.0
"""The time that ``import nncf`` takes in a fresh interpreter.

    python -m benchmarks.import_time [--repeat 15]

Median and spread of new processes; the time of starting Python itself is not in it. The modules
that were loaded are looked at as well: none of a framework may be among them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
FRAMEWORKS = ("torch", "tensorflow", "keras", "onnx", "onnxruntime", "openvino", "numpy")
PROGRAM = """
import sys, time
start = time.perf_counter()
import nncf
print(time.perf_counter() - start, *sorted(name for name in sys.modules if "." not in name))
"""


def measure(repeat: int) -> tuple[list[float], set[str]]:
    """Return the seconds of each process after the first, and the names of loaded packages."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-c", PROGRAM]
    times, modules = [], set()
    for _ in range(repeat + 1):
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        )
        seconds, *names = done.stdout.split()
        times.append(float(seconds))
        modules.update(names)
    return times[1:], modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15)
    times, modules = measure(parser.parse_args().repeat)
    loaded = [name for name in FRAMEWORKS if name in modules]
    print(f"import nncf: {statistics.median(times):.3f} s, median of {len(times)} processes")
    print(f"from {min(times):.3f} to {max(times):.3f} s; goal: at most 0.3 s")
    print(f"frameworks loaded by it: {', '.join(loaded) or 'none'}")


if __name__ == "__main__":
    main()
