# SPDX-License-Identifier: Apache-2.0
"""Parity: does the deployed file compute what the trained model computes.

Two questions are kept apart, because rounding makes them different:

* *Is each operation right?* Layer by layer, with the deployed file's own values fed to the
  trained model at each quantizer, a correct file is off by at most one level, at few elements:
  where a value falls next to a rounding boundary, float32 noise decides the side.
* *How far apart are the outputs?* Such flips travel through the rest of the network, so the
  outputs of a correct file differ by a part of the quantization error itself.

The defaults of ``Tolerance`` are measured (docs/decisions/0006-parity-tolerance.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.sizes import SizeTable
from nncf.errors import ParityError

Array = NDArray[Any]


@dataclass(frozen=True)
class Tolerance:
    """How much a correct file may differ.

    ``levels``: the largest difference of one quantized element, in levels of its grid.
    ``flips``: the largest part of a quantizer's elements that may differ at all; ``few``
    elements may in any case, for tensors too small to speak of parts.
    ``local``: largest difference of an output relative to its largest value, when the values
    at all quantizers are those of the file.
    ``output``: root mean square difference of an output relative to its root mean square, when
    trained and deployed model run on their own.
    """

    levels: int = 1
    flips: float = 0.02
    few: int = 8
    local: float = 1e-3
    output: float = 0.3


DEFAULT_TOLERANCE = Tolerance()


@dataclass(frozen=True)
class Comparison:
    """One tensor of the trained model against the same one of the deployed file.

    ``relative`` is the largest difference over the largest trained value, ``deviation`` the
    root mean square difference over the root mean square of the trained values; ``agreement``
    the part of the rows whose largest element is at the same place (rank-2 outputs only);
    ``levels`` and ``flips`` are as in ``Tolerance`` (quantizers
    only), ``elements`` is what ``flips`` is a part of.
    """

    name: str
    absolute: float
    relative: float
    deviation: float
    agreement: float | None = None
    levels: int | None = None
    flips: float | None = None
    elements: int = 0

    def ok(self, tolerance: Tolerance, *, local: bool) -> bool:
        """True if within tolerance; NaN never is."""
        if self.levels is not None and self.flips is not None:
            rare = self.flips <= tolerance.flips or self.flips * self.elements <= tolerance.few
            return self.levels <= tolerance.levels and rare
        if local:
            return self.relative <= tolerance.local
        return self.deviation <= tolerance.output


def compare(name: str, trained: Array, deployed: Array) -> Comparison:
    """Compare two arrays of any equal shape; a differing shape counts as infinitely far."""
    if trained.shape != deployed.shape:
        return Comparison(name, np.inf, np.inf, np.inf)
    a, b = trained.astype(np.float64), deployed.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))  # equal infinities, equal NaN
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    if not a.size:
        return Comparison(name, 0.0, 0.0, 0.0)
    finite = np.abs(a[np.isfinite(a)])
    largest = float(finite.max()) if finite.size else 0.0
    average = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    absolute = float(difference.max())
    deviation = float(np.sqrt(np.mean(difference**2)))
    agreement = None
    if a.ndim == 2 and a.shape[1] > 1 and not np.isnan(a).any():
        agreement = float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
    return Comparison(
        name, absolute, ratio(absolute, largest), ratio(deviation, average), agreement
    )


def ratio(difference: float, size: float) -> float:
    """Return difference / size; 0 for no difference at all, infinity over zero."""
    if difference == 0:
        return 0.0
    return difference / size if size else np.inf


def compare_levels(name: str, trained: Array, deployed: Array, *, scale: Array) -> Comparison:
    """Compare integer levels of a quantizer; ``scale`` broadcasts and gives the size of a step."""
    if trained.shape != deployed.shape:
        return Comparison(name, np.inf, np.inf, np.inf, levels=256, flips=1.0)
    steps = np.abs(trained.astype(np.int64) - deployed.astype(np.int64))
    plain = compare(name, trained * scale, deployed * scale)
    largest = int(steps.max(initial=0))
    flips = float(np.mean(steps > 0)) if steps.size else 0.0
    return Comparison(
        name,
        plain.absolute,
        plain.relative,
        plain.deviation,
        levels=largest,
        flips=flips,
        elements=steps.size,
    )


@dataclass(frozen=True)
class ParityReport:
    """The result of running the deployed file against the trained model. Prints as a table.

    ``outputs`` compares both models running on their own. ``layers`` goes through the
    quantizers and then the outputs in order of execution, each with the file's values before
    it; it is empty when there is nothing to look at between input and output. ``sizes`` says
    where the bytes of the file go, once it is written.
    """

    runtime: str
    outputs: tuple[Comparison, ...]
    layers: tuple[Comparison, ...] = ()
    tolerance: Tolerance = Tolerance()
    sizes: SizeTable | None = None

    @property
    def first_diverging(self) -> Comparison | None:
        """The first operation that computes something else, None if there is none."""
        for layer in self.layers:
            if not layer.ok(self.tolerance, local=True):
                return layer
        for output in self.outputs:
            if not output.ok(self.tolerance, local=False):
                return output
        return None

    @property
    def ok(self) -> bool:
        return self.first_diverging is None

    def check(self, path: object = "the file") -> None:
        """Raise ParityError that names the first diverging operation, if there is one."""
        culprit = self.first_diverging
        if culprit is None:
            return
        raise ParityError(
            f"{path}, run by {self.runtime}, does not compute what the trained model computes. "
            f"The first operation that differs is {culprit.name}: {describe(culprit)}. "
            f"Expected: {expected(culprit, self.tolerance, local=culprit in self.layers)}. The "
            "file was not kept. Leave that operation out of compression with ignored_scopes, or "
            "report it with the model; a wider nncf.compression.parity.Tolerance accepts it."
        )

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows

    def __str__(self) -> str:
        rows = [f"Parity of the trained model and the file in {self.runtime}"]
        rows += table(self.outputs)
        if self.layers:
            rows += ["", "Layer by layer, each with the file's values before it"]
            rows += table(self.layers)
        culprit = self.first_diverging
        if self.sizes is not None:
            rows += ["", f"The file: {self.sizes.summary}"]
        rows.append("equal within tolerance" if culprit is None else f"DIVERGES at {culprit.name}")
        return "\n".join(rows)


def describe(item: Comparison) -> str:
    if item.levels is not None and item.flips is not None:
        return f"{item.levels} levels apart at most, {item.flips:.2%} of the elements differ"
    return (
        f"largest difference {item.absolute:.3g} ({item.relative:.2%} of the largest value), "
        f"root mean square {item.deviation:.2%}"
    )


def expected(item: Comparison, tolerance: Tolerance, *, local: bool) -> str:
    if item.levels is not None:
        return f"at most {tolerance.levels} level at {tolerance.flips:.2%} of the elements"
    if local:
        return f"a largest difference of {tolerance.local:.2%} of the largest value"
    return f"a root mean square difference of {tolerance.output:.2%}"


def table(items: Iterable[Comparison]) -> list[str]:
    """Return the comparisons as rows of text under a header."""
    items = list(items)
    width = max([len(item.name) for item in items] + [4])
    header = f"{'name':{width}}  {'max abs':>9}  {'max rel':>9}  {'rms':>9}  {'top-1':>7}"
    rows = [f"{header}  {'levels':>6}  {'flips':>8}"]
    for item in items:
        top = "" if item.agreement is None else f"{item.agreement:.2%}"
        levels = "" if item.levels is None else str(item.levels)
        flips = "" if item.flips is None else f"{item.flips:.3%}"
        numbers = f"{item.absolute:9.3g}  {item.relative:9.2%}  {item.deviation:9.2%}"
        rows.append(f"{item.name:{width}}  {numbers}  {top:>7}  {levels:>6}  {flips:>8}")
    return rows
