# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a training step: INT8 against floating point and other tools.

    python -m benchmarks.training_step [--networks resnet18 mobilenet_v2] [--steps 9]
        [--peer nncf219=PYTHON] [--peer brevitas=PYTHON] [--peer torchao_pt2e=PYTHON]

Each variant lives in a process of its own: peak memory is per process, and a peer runs in the
interpreter given, whose environment has that tool (which release: see ``benchmarks/peers``).
``torch_ao`` comes with PyTorch and is always there. The steps take turns, so that a busy minute
of the machine hits all alike; medians are compared. ``inputs``, ``weights`` and ``summands``
count the operands of convolutions, linears and additions of feature maps that were found to be
on a grid of 256 levels: no tool is fast here by leaving something out unseen. (The row of
floating point shows that the count tells the two apart.)
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.records import machine, markdown, write

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet18", "mobilenet_v2")
BASE = "floating point"
OWN = {
    BASE: "benchmarks.step_server floating_point",
    "nncf": "benchmarks.step_server nncf",
    "torch.ao, learned scales": "benchmarks.peers.torch_ao",
    "torch.ao, fused observers": "benchmarks.peers.torch_ao_fused",
}
"""Variants that this interpreter runs, by name: the module, and its argument."""
PEERS = {
    "nncf219": "NNCF 2.19",
    "brevitas": "Brevitas",
    "torchao_pt2e": "torchao pt2e",
}
"""Modules of ``benchmarks.peers`` that need another interpreter, and their names."""
WARMING = 2  # steps that are not counted


@dataclass
class Server:
    """A process that makes training steps of one variant on request."""

    process: subprocess.Popen[str]
    times: list[float] = field(default_factory=list)
    loss: float = float("nan")

    def ask(self, request: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self.listen()

    def listen(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # a tool may greet while it is imported
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"a process ended early (see --verbose): {self.process.args}")

    def step(self) -> None:
        answer = self.ask("step")
        self.times.append(answer["seconds"])
        self.loss = answer["loss"]


def start(command: list[str], *, own: bool, arguments: argparse.Namespace) -> Server:
    """Start a server in the root of the repository; a peer does not see our package."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads))
    path = [str(ROOT / "src"), environment.pop("PYTHONPATH", "")]
    if own:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    options = ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    if arguments.processor_time:
        options.append("--processor-time")
    errors = None if arguments.verbose else subprocess.DEVNULL
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*command, *options],
        cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True,
    )  # fmt: skip
    return Server(process)


def measure(network: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return for each variant: seconds per step, MiB at the peak, loss, what is quantized."""
    commands = {name: [sys.executable, "-m", *what.split()] for name, what in OWN.items()}
    for item in arguments.peer:
        module, _, python = item.partition("=")
        program = str(Path(python).absolute())
        commands[PEERS[module]] = [program, "-m", f"benchmarks.peers.{module}"]
    servers: dict[str, Server] = {}
    prepared: dict[str, float] = {}
    for name, command in commands.items():
        servers[name] = start(
            [*command, "--network", network], own=name in OWN, arguments=arguments
        )
        prepared[name] = servers[name].listen()["prepared"]
        print(f"# {name} is ready after {prepared[name]:.1f} s", file=sys.stderr, flush=True)
    for _ in range(arguments.steps + WARMING):
        for server in servers.values():
            server.step()
            time.sleep(0.02)  # threads that still spin would slow down whoever is next
    result: dict[str, dict[str, Any]] = {}
    for name, server in servers.items():
        result[name] = {
            "seconds": statistics.median(server.times[WARMING:]),
            "prepared": prepared[name],
            "loss": server.loss,
            **server.ask("finish"),
        }
        server.process.wait()
    return result


def table(result: dict[str, dict[str, Any]]) -> str:
    """Return one row for each variant, with ratios to floating point."""
    base = result[BASE]
    rows = []
    for name, found in result.items():
        rows.append(
            [
                name,
                f"{found['seconds'] * 1e3:.0f}",
                f"{found['seconds'] / base['seconds']:.2f}",
                f"{found['peak']:.0f}",
                f"{found['peak'] / base['peak']:.2f}",
                f"{found['prepared']:.1f}",
                *(found["coverage"].get(role, "-") for role in ("inputs", "weights", "summands")),
                f"{found['loss']:.4f}",
            ]
        )
    header = ["", "step, ms", "× FP32", "peak, MiB", "× FP32", "preparation, s",
              "inputs", "weights", "summands", "last loss"]  # fmt: skip
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON",
                        help=f"interpreter of another tool; names: {', '.join(PEERS)}")  # fmt: skip
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true",
                        help="count processor time instead (busy machine; with --threads 1)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--verbose", action="store_true", help="show what the tools say")
    arguments = parser.parse_args()
    unknown = [item for item in arguments.peer if item.partition("=")[0] not in PEERS]
    if unknown:
        parser.error(f"--peer {unknown[0]}: expected one of {', '.join(PEERS)}, '=', and a path")
    print(f"{json.dumps(machine())}\n{arguments.threads} threads used")
    print(f"torch {importlib.metadata.version('torch')}, batch {arguments.batch}, 32×32 pixels")
    results: dict[str, Any] = {}
    for network in arguments.networks:
        results[network] = measure(network, arguments)
        print(f"\n{network}, medians of {arguments.steps} steps\n\n{table(results[network])}")
        write(arguments.output, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
