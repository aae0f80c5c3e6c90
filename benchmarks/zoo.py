# SPDX-License-Identifier: Apache-2.0
"""Compress one small network of every architecture family and report what was reached.

    pip install --no-deps torchvision timm pillow; pip install transformers
    python -m benchmarks.zoo                        # everything: half an hour on one core
    python -m benchmarks.zoo --only 'swin|Bert' --verbose
    python -m benchmarks.zoo --capture-only --list

Each network gets INT8 quantization with ranges from one random batch, then these must hold:
outputs are finite; ``strip()`` gives the same bits; a second, equal network gets the same layout;
every CompressionOp runs exactly where the layout says, no more and no less; with plain copies in
place of the quantizers the network computes what it did before; gradients reach the quantizers;
every weight is quantized or listed with a reason. Prints one line per network and a
summary; the exit code is 1 when anything fails.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import logging
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo_models import Case, Example, cases
from nncf import NNCFConfig
from nncf.algorithms.quantization.traits import weights_of
from nncf.compression.controller import CompressionController
from nncf.compression.layout import Layout
from nncf.graph.graph import Graph
from nncf.torch import create_compressed_model, register_default_init_args
from nncf.torch.capture import capture
from nncf.torch.intercept import Compression, compression_of
from nncf.torch.sites import Site
from nncf.torch.structure import tensors_in


class Wrong(Exception):
    """A network was compressed, but something that must hold does not."""


@dataclass
class Row:
    """What came of one network."""

    name: str
    operations: int = 0
    quantizers: int = 0
    quantized: int = 0
    unreached: dict[str, str] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        numbers = (
            f"{self.operations:6} {self.quantizers:6} {self.quantized:6} {len(self.unreached):6}"
        )
        end = f"FAILED {self.failure}" if self.failure else "ok"
        return f"{self.name:55} {numbers} {self.seconds:7.1f} s  {end}"


HEADER = f"{'network':55} {'ops':>6} {'quant.':>6} {'q.ops':>6} {'unrea.':>6}"


class Batches:
    """A loader of one batch that says how forward is called."""

    batch_size = 1

    def __init__(self, example: Example) -> None:
        self.example = example

    def __iter__(self) -> Iterator[Any]:
        return iter([copy.deepcopy((self.example.args, self.example.kwargs))])

    def __len__(self) -> int:
        return 1

    def get_inputs(self, batch: Any) -> Any:
        return batch


class CountedSites(dict[str, Site]):
    """The sites of a model, noting which were passed and how many ops must have run there."""

    def __init__(self, sites: dict[str, Site]) -> None:
        super().__init__(sites)
        self.passed: Counter[str] = Counter()

    def get(self, key: str, default: Any = None) -> Any:
        found = super().get(key, default)
        if found is not None:
            self.passed[key] += 1
        return found

    def due(self) -> int:
        """Return the number of runs of ops that the passed sites ask for."""
        return sum(
            times
            * sum(len(names) for ports in (site.before, site.after) for names in ports.values())
            for key, times in self.passed.items()
            for site in [self[key]]
        )


def run(case: Case, *, capture_only: bool) -> Row:
    """Build, compress and check one network."""
    row, start = Row(case.name), time.perf_counter()
    try:
        if capture_only:
            _capture(case, row)
        else:
            _compress(case, row)
    except (ImportError, OSError) as error:
        row.failure = f"not installed: {error}"
    except Exception as error:  # noqa: BLE001 (any failure of any network is a line of the report)
        text = str(error).strip().splitlines() or [""]
        row.failure = f"{type(error).__name__}: {text[0][:300]}"
        logging.getLogger("zoo").debug("%s", traceback.format_exc())
    row.seconds = time.perf_counter() - start
    gc.collect()
    return row


def _build(case: Case) -> Example:
    torch.manual_seed(0)
    example = case.build()
    example.model.eval()
    return example


def _forward(example: Example, model: torch.nn.Module | None = None) -> list[torch.Tensor]:
    """Return all tensors that a forward gives, from fresh copies of the arguments."""
    args, kwargs = copy.deepcopy((example.args, example.kwargs))
    torch.manual_seed(1)
    return list(tensors_in((model or example.model)(*args, **kwargs)))


def _capture(case: Case, row: Row) -> None:
    graph = _graph(_build(case))
    row.operations = len(graph)
    row.unreached = _unreached(graph)


def _graph(example: Example) -> Graph:
    args, kwargs = copy.deepcopy((example.args, example.kwargs))
    return capture(example.model, lambda m: m(*args, **kwargs), inputs=(args, kwargs)).graph


def _compress(case: Case, row: Row) -> None:
    example = _build(case)
    before = _forward_without_gradients(example)
    graph = _graph(example)
    controller = _quantize(example)
    compression = compression_of(example.model)
    assert compression is not None
    layout = compression.layout
    row.operations, row.quantizers = len(graph), len(layout)
    row.quantized = len({point.address for insert in layout for point in insert.points})
    row.unreached = _unreached(graph)
    _check_weights(graph, layout)
    after = _check_firing(example, compression)
    _check_values(before, after)
    _check_copies(example, compression, before)
    stripped = _forward_without_gradients(example, controller.strip())
    if not _same(after, stripped):
        raise Wrong(f"strip() changed the outputs by up to {_distance(after, stripped):.3g}")
    _check_gradients(example, compression)
    _check_repeats(case, layout)


def _quantize(example: Example) -> CompressionController:
    with tempfile.TemporaryDirectory() as folder:
        section = {
            "algorithm": "quantization",
            "initializer": {
                "range": {"num_init_samples": 1},
                "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
            },
        }
        config = NNCFConfig.from_dict({"compression": section, "log_dir": folder})
        register_default_init_args(config, Batches(example))
        controller, _ = create_compressed_model(example.model, config, dump_graphs=False)
    return controller


def _forward_without_gradients(
    example: Example, model: torch.nn.Module | None = None
) -> list[torch.Tensor]:
    with torch.no_grad():
        return _forward(example, model)


def _unreached(graph: Graph) -> dict[str, str]:
    """Return the operations that hide something from compression, and why."""
    found = {}
    for operation in graph.operations():
        weights = [
            item.name
            for item in operation.parameters
            if sum(size > 1 for size in item.shape) > 1  # not factors of channels
        ]
        if operation.unreached is not None:
            found[operation.key] = operation.unreached
        elif operation.kind.name == "unknown" and weights:
            found[operation.key] = f"unknown function reads {', '.join(weights)}"
        elif operation.kind.name == "unknown" and not operation.address.scope:
            found[operation.key] = "tensor made out of sight"
    return found


def _check_weights(graph: Graph, layout: Layout) -> None:
    """Every weight is at a point of the layout, or its operation is in the list of skips."""
    points = {(point.address, point.port) for insert in layout for point in insert.points}
    skipped = {skip.address.partition("|")[0] for skip in layout.skipped}
    for operation in graph.operations():
        for weight in weights_of(operation):
            if (operation.key, weight.port) not in points and operation.key not in skipped:
                raise Wrong(f"{weight.name} at {operation.key} is neither quantized nor skipped")


def _check_firing(example: Example, compression: Compression) -> list[torch.Tensor]:
    """Return the outputs of a forward in which every CompressionOp ran where it should."""
    sites, runs = CountedSites(compression.sites), Counter()
    compression.sites = sites
    counters = [
        op.register_forward_hook(lambda *_, name=name: runs.update([name]))
        for name, op in compression.ops.items()
    ]
    outputs = _forward_without_gradients(example)
    for counter in counters:
        counter.remove()
    compression.sites = dict(sites)
    silent = sorted(set(sites) - set(sites.passed))
    if example.boxes:  # how often what stands outside all layers runs depends on the boxes found
        silent = [key for key in silent if key.count("/") > 1]
    if silent:
        raise Wrong(
            f"{len(silent)} of {len(sites)} sites were not passed, the first is {silent[0]}"
        )
    if sum(runs.values()) != sites.due():
        raise Wrong(f"{sum(runs.values())} ops ran at the sites, {sites.due()} should have")
    idle = sorted(set(compression.ops) - set(runs))
    if idle and not example.boxes:
        raise Wrong(f"{len(idle)} ops never ran, the first is {idle[0]}")
    return outputs


def _check_values(before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
    for tensor in after:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            known = any(not torch.isfinite(t).all() for t in before if t.is_floating_point())
            if not known:
                raise Wrong("an output is not finite")


class Copy(torch.nn.Module):
    """A CompressionOp that changes nothing but the identity of the tensor."""

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


def _check_copies(example: Example, compression: Compression, before: list[torch.Tensor]) -> None:
    """Only the values of the quantizers change the network, not that they are there."""
    ops = dict(compression.ops)
    for name in ops:
        compression.ops[name] = Copy()
    after = _forward_without_gradients(example)
    for name, op in ops.items():
        compression.ops[name] = op
    size = max((float(t.double().abs().max()) for t in before if t.numel()), default=0.0)
    if not _distance(before, after) <= 1e-3 * size:
        raise Wrong(f"plain copies at the sites change outputs by {_distance(before, after):.3g}")


def _same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(first, second, strict=True)
    )


def _distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    if [t.shape for t in first] != [t.shape for t in second]:
        return float("inf")
    pairs = zip(first, second, strict=True)
    return max(
        (float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()), default=0
    )


def _check_gradients(example: Example, compression: Compression) -> None:
    """Gradients reach the quantizers' parameters: most, in detectors those before kept boxes."""
    outputs = [t for t in _forward(example) if t.is_floating_point() and t.requires_grad]
    if not outputs:
        raise Wrong("no output carries a gradient")
    sum(tensor.float().pow(2).mean() for tensor in outputs).backward()
    learned = [p for p in compression.parameters() if p.requires_grad]
    reached = [p for p in learned if p.grad is not None]
    if len(reached) * 4 < len(learned):
        raise Wrong(f"only {len(reached)} of {len(learned)} quantizer parameters get a gradient")


def _check_repeats(case: Case, layout: Layout) -> None:
    again = _build(case)
    _forward_without_gradients(again)  # some networks keep tensors from their first forward
    _quantize(again)
    second = compression_of(again.model)
    assert second is not None
    if second.layout.to_state() != layout.to_state():
        raise Wrong("a second, equal network got another layout")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument(
        "--verbose", action="store_true", help="print what was not reached, and why"
    )
    parser.add_argument("--trace", action="store_true", help="print tracebacks of failures")
    parser.add_argument("--capture-only", action="store_true", help="capture, do not compress")
    parser.add_argument(
        "--torchvision-shim",
        type=Path,
        help="a file to run before torchvision is imported, where its compiled operators are missing",
    )
    return parser.parse_args()


def _run_file(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("torchvision_shim", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def main() -> int:
    """Run the zoo; return the exit code."""
    arguments = _arguments()
    chosen = [case for case in cases() if re.search(arguments.only, case.name)]
    if arguments.list:
        print("\n".join(case.name for case in chosen))
        return 0
    warnings.simplefilter("ignore")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    if arguments.trace:
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("zoo").setLevel(logging.DEBUG)
    if arguments.torchvision_shim is not None:
        _run_file(arguments.torchvision_shim)
    print(HEADER)
    rows = []
    for case in chosen:
        row = run(case, capture_only=arguments.capture_only)
        rows.append(row)
        print(row, flush=True)
        if arguments.verbose:
            for key, reason in row.unreached.items():
                print(f"    {key}: {reason}")
    failed = [row for row in rows if row.failure]
    print(
        f"{len(rows)} networks, {sum(row.operations for row in rows)} operations captured, "
        f"{sum(row.quantized for row in rows)} with quantizers ({sum(r.quantizers for r in rows)}), "
        f"{sum(len(row.unreached) for row in rows)} unreached, {len(failed)} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
