# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of a choice, for ``dump_init_precision_data``."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nncf.algorithms.mixed_precision.space import Space, Widths
from nncf.algorithms.mixed_precision.traces import write_traces
from nncf.compression.files import replacing, write_text
from nncf.errors import MissingDependency

TABLE = "bitwidth_costs.csv"
PLOT = "bitwidths.png"
EPISODES = "autoq_episodes"


def check_plots() -> None:
    """Raise MissingDependency now rather than after the search."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("matplotlib", "report", "dump_init_precision_data")


def write(folder: Path, space: Space, widths: Widths, found: Any) -> None:
    """Write the traces, the table of costs and a plot of both to a folder."""
    write_traces(folder, found.traces)
    write_text(folder / TABLE, _table(space, widths, found))
    with replacing(folder / PLOT) as path:
        _plot(path, space, widths, found.traces)


def write_episodes(folder: Path, episodes: Sequence[Any]) -> None:
    """Write what each episode tried and got, as a table and as a plot."""
    from matplotlib.figure import Figure

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["episode", "score", "share of size", *episodes[0].widths])
    for number, episode in enumerate(episodes):
        writer.writerow([number, episode.score, episode.share, *episode.widths.values()])
    write_text(folder / f"{EPISODES}.csv", text.getvalue())
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.subplots()
    scores = [episode.score for episode in episodes]
    axes.plot(scores, ".", label="score")
    axes.plot(list(itertools.accumulate(scores, max)), label="best so far")
    axes.set_xlabel("episode")
    axes.legend()
    with replacing(folder / f"{EPISODES}.png") as path:
        figure.savefig(path, dpi=120)


def _table(space: Space, widths: Widths, found: Any) -> str:
    """Return a row for each weight: sizes, trace, error and cost by bits, and what was chosen."""
    every = sorted({bits for row in found.costs.values() for bits in row})
    flops: dict[str, float] = dict.fromkeys(space.weights, 0.0)
    for product in space.products:
        flops[product.weight] += product.flops
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = [f"{kind} at {bits} bits" for kind in ("error", "cost") for bits in every]
    writer.writerow(["weight", "values", "flops", "average trace", *measures, "bits"])
    for name, weight in space.weights.items():
        cells = [row[name].get(bits, "") for row in (found.errors, found.costs) for bits in every]
        known = [name, weight.values, flops[name], found.traces[name]]
        writer.writerow([*known, *cells, widths[name]])
    return text.getvalue()


def _plot(path: Path, space: Space, widths: Widths, traces: Mapping[str, float]) -> None:
    from matplotlib.figure import Figure

    names = list(space.weights)
    figure = Figure(figsize=(max(6.0, 0.3 * len(names)), 7.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.bar(range(len(names)), [traces[name] for name in names])
    upper.set_yscale("symlog", linthresh=max(min(map(abs, traces.values())), 1e-12))
    upper.set_ylabel("average Hessian trace")
    lower.bar(range(len(names)), [widths[name] for name in names], color="tab:orange")
    lower.set_ylabel("bits")
    labels = [name.removesuffix("|WEIGHT").rpartition("/")[0] for name in names]
    lower.set_xticks(range(len(names)), labels, rotation=90, fontsize="x-small")
    figure.savefig(path, dpi=120)
