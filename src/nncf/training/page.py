# SPDX-License-Identifier: Apache-2.0
"""An HTML page of everything that a run has tried: metric against compression rate, and a table.

One file without anything from elsewhere; the drawing is SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template

from nncf.training.goal import Goal
from nncf.training.progress import Attempt, Progress, best_of

WIDTH, HEIGHT, MARGIN = 720, 380, 56

_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Accuracy-aware training</title><style>
body { font: 15px system-ui, sans-serif; margin: 2em auto; max-width: 760px; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { padding: 3px 8px; text-align: right }
tr.met { background: #e8f4ea } tr.best { font-weight: bold } th { border-bottom: 1px solid #888 }
svg text { font-size: 12px; fill: #444 } .note { color: #666 }
</style></head><body>
<h1>Accuracy-aware training</h1>
<p>$summary</p>
$drawing
<p class="note">Each point is an epoch: filled if the model was fully compressed and good enough, the
line is the Pareto front of these, dashed the least that is tolerated.</p>
<table><tr><th>epoch<th>rate<th>metric<th>budget<th>stage<th>learning rate ×<th>seconds</tr>
$rows
</table></body></html>
""")


def page(goal: Goal, progress: Progress, *, by_rate: bool) -> str:
    """Return the page of a run."""
    best = best_of(progress.attempts, highest_rate=by_rate)
    return _PAGE.substitute(
        summary=_summary(goal, progress, best),
        drawing=_drawing(goal, progress.attempts, best),
        rows="\n".join(_row(attempt, best) for attempt in progress.attempts),
    )


def front(attempts: Sequence[Attempt], *, higher_is_better: bool) -> list[Attempt]:
    """Return the attempts that met the goal and that no other beats in rate and metric both."""
    sign = 1 if higher_is_better else -1
    found: list[Attempt] = []
    good = [attempt for attempt in attempts if attempt.met]
    for attempt in sorted(good, key=lambda a: (a.rate or 0.0, sign * a.metric), reverse=True):
        if not found or sign * attempt.metric > sign * found[-1].metric:
            found.append(attempt)
    return found[::-1]


def _summary(goal: Goal, progress: Progress, best: Attempt | None) -> str:
    least = "at least" if goal.higher_is_better else "at most"
    words = [
        f"The goal was a metric of {least} {goal.tolerable:.6g} ({goal.uncompressed:.6g} before)."
    ]
    if best is not None:
        rate = "" if best.rate is None else f" at rate {best.rate:.3f}"
        met = "which meets it" if best.met else "which does not meet it"
        words.append(f"The result is {best.metric:.6g}{rate} after epoch {best.epoch}, {met}.")
    ended = f"Ended: {progress.finished}." if progress.finished else "The run has not ended."
    return escape(" ".join([*words, ended]))


def _row(attempt: Attempt, best: Attempt | None) -> str:
    kinds = ["met"] * attempt.met + ["best"] * (attempt is best)
    rate = "" if attempt.rate is None else f"{attempt.rate:.3f}"
    cells = [
        *(attempt.epoch, rate, f"{attempt.metric:.6g}", f"{attempt.budget:+.4g}"),
        attempt.stage.name.removesuffix("_COMPRESSED").lower(),
        *(f"{attempt.lr_factor:g}", f"{attempt.seconds:.0f}"),
    ]
    return f'<tr class="{" ".join(kinds)}">' + "".join(f"<td>{cell}" for cell in cells) + "</tr>"


def _drawing(goal: Goal, attempts: Sequence[Attempt], best: Attempt | None) -> str:
    shown = [attempt for attempt in attempts if abs(attempt.budget) != float("inf")]
    if not shown:
        return ""
    rated = any(attempt.rate for attempt in shown)
    along = {id(a): (a.rate or 0.0) if rated else float(a.epoch) for a in shown}
    values = [*(attempt.metric for attempt in shown), goal.tolerable, goal.uncompressed]
    low, high = min(values), max(values)
    right = max([*along.values(), 1e-9]) if not rated else 1.0

    def x(value: float) -> float:
        return round(MARGIN + value / right * (WIDTH - 2 * MARGIN), 1)

    def y(metric: float) -> float:
        share = (metric - low) / ((high - low) or 1.0)
        return round(HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN), 1)

    bottom, end, least = HEIGHT - MARGIN, WIDTH - MARGIN, y(goal.tolerable)
    name, dashed = "compression rate" if rated else "epoch", 'stroke-dasharray="6 4"'
    parts = [
        f'<line x1="{MARGIN}" y1="{bottom}" x2="{end}" y2="{bottom}" stroke="#888"/>',
        f'<line x1="{MARGIN}" y1="{MARGIN}" x2="{MARGIN}" y2="{bottom}" stroke="#888"/>',
        f'<line x1="{MARGIN}" y1="{least}" x2="{end}" y2="{least}" stroke="#c33" {dashed}/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">{name}</text>',
        f'<text x="{MARGIN}" y="{MARGIN - 12}">metric</text>',
    ]
    parts += [
        f'<text x="{MARGIN - 6}" y="{y(value) + 4}" text-anchor="end">{value:.4g}</text>'
        for value in (low, high)
    ]
    parts += [
        f'<text x="{x(share * right)}" y="{bottom + 16}" text-anchor="middle">{share * right:g}</text>'
        for share in (0, 0.5, 1)
    ]
    points = [
        (x(along[id(a)]), y(a.metric)) for a in front(shown, higher_is_better=goal.higher_is_better)
    ]
    line = " ".join(f"{left},{top}" for left, top in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#273"/>')
    for attempt in shown:
        size = 7 if attempt is best else 4
        fill = "#273" if attempt.met else "none"
        parts.append(
            f'<circle cx="{x(along[id(attempt)])}" cy="{y(attempt.metric)}" r="{size}" fill="{fill}" '
            f'stroke="#273"><title>epoch {attempt.epoch}: {attempt.metric:.6g}</title></circle>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
