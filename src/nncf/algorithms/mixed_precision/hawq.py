# SPDX-License-Identifier: Apache-2.0
"""Bit widths from second derivatives: traces, rounding errors, an integer programme."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncf.algorithms.mixed_precision import report
from nncf.algorithms.mixed_precision.budget import Budget, read_budget
from nncf.algorithms.mixed_precision.plan_file import write_plan
from nncf.algorithms.mixed_precision.programme import check_reach, solve
from nncf.algorithms.mixed_precision.space import Space
from nncf.algorithms.mixed_precision.traces import read_traces
from nncf.errors import DataError
from nncf.logging import nncf_logger

_LEAST_SHARE = 1e-6
"""Of the largest trace: what a trace counts that came out negative or zero."""


@dataclass(frozen=True)
class Evidence:
    """What can be measured on the model.

    ``traces()`` estimates the average Hessian trace of each weight, ``errors(bits)`` returns
    ‖Q(W) − W‖² of each weight that may have so many bits, ``load(path)`` reads a file of numbers.
    """

    traces: Callable[[], Mapping[str, float]]
    errors: Callable[[int], Mapping[str, float]]
    load: Callable[[Path], Any]


@dataclass(frozen=True)
class Findings:
    """What the choice was made from."""

    traces: Mapping[str, float]
    errors: Mapping[str, Mapping[int, float]]
    costs: Mapping[str, Mapping[int, float]]


def choose(options: Any, space: Space, evidence: Evidence, folder: Path | None) -> dict[str, int]:
    """Return the widths of all quantizers; the plan goes into ``folder`` unless that is None.

    Raises LevelError, which names the nearest possible, for a budget out of reach, ConfigError for
    files that do not fit, DataError when the model cannot be measured.
    """
    strict = options.bitwidth_assignment_mode == "strict"
    budget = read_budget(options, space)
    check_reach(space, budget, strict=strict)
    names = list(space.weights)
    if options.traces_per_layer_path is not None:
        traces: Mapping[str, float] = read_traces(
            options.traces_per_layer_path, names, evidence.load
        )
    else:
        traces = evidence.traces()
    found = weigh(space, traces, evidence.errors)
    widths = solve(space, found.costs, budget, strict=strict)
    _tell(space, widths, budget, found)
    if folder is not None:
        write_plan(folder, widths, space.quantizers)
        if options.dump_init_precision_data:
            report.write(folder, space, widths, found)
    return widths


def weigh(
    space: Space,
    traces: Mapping[str, float],
    errors: Callable[[int], Mapping[str, float]],
) -> Findings:
    """Return what each weight costs in each of its widths: trace times rounding error."""
    bits = sorted({b for weight in space.weights.values() for b in weight.widths})
    table: dict[str, dict[int, float]] = {name: {} for name in space.weights}
    for width in bits:
        measured = errors(width)
        for name, weight in space.weights.items():
            if width in weight.widths:
                table[name][width] = measured.get(name, 0.0)
    traces = _with_unseen(space, traces)
    least = _LEAST_SHARE * max((abs(trace) for trace in traces.values()), default=0.0)
    below = [name for name, trace in traces.items() if trace <= 0]
    if len(below) == len(traces):
        raise DataError(
            "initializer.precision: no weight has a positive Hessian trace, so nothing tells "
            "sensitive layers from others. Expected a trained model: train it before it is "
            "quantized, and check that the loader's targets and the criterion are those of training."
        )
    if below:
        nncf_logger.info(
            "Hessian traces of %d weights are not positive and count as nearly nothing: %s.",
            *(len(below), ", ".join(below[:5])),
        )
    costs = {
        name: {b: max(traces[name], least) * error for b, error in row.items()}
        for name, row in table.items()
    }
    return Findings(traces, table, costs)


def _with_unseen(space: Space, traces: Mapping[str, float]) -> Mapping[str, float]:
    """Return traces of all weights: those that no data reached count as the most sensitive."""
    unseen = [name for name in space.weights if name not in traces]
    if not unseen:
        return traces
    nncf_logger.warning(
        "No value reached %d weights while Hessian traces were estimated, so they count as the most "
        "sensitive: %s. Does the registered data take all branches of the model?",
        *(len(unseen), ", ".join(unseen[:5])),
    )
    most = max(traces.values(), default=0.0)
    return {name: traces.get(name, most) for name in space.weights}


def _tell(space: Space, widths: Mapping[str, int], budget: Budget, found: Findings) -> None:
    if all(widths[name] == max(weight.widths) for name, weight in space.weights.items()):
        nncf_logger.warning(
            "initializer.precision: the limit is so wide that every weight keeps the widest of its "
            "bits (%s). Expected one below that: a smaller budget, or a larger compression_ratio.",
            budget.describe(budget.cost(space, widths), space),
        )
    counts = Counter(widths[name] for name in space.weights)
    listed = ", ".join(f"{bits} bits: {counts[bits]}" for bits in sorted(counts))
    total = sum(found.costs[name][widths[name]] for name in space.weights)
    nncf_logger.info(
        "Bit widths of weights by hawq: %s. %s, expected increase of the loss %.3g.",
        *(listed, budget.describe(budget.cost(space, widths), space).capitalize(), total / 2),
    )
