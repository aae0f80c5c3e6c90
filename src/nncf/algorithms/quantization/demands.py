# SPDX-License-Identifier: Apache-2.0
"""Demands: what consumers ask of the quantizer of a tensor, and how several asks become one."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from nncf.algorithms.quantization.hardware import Schemes
from nncf.algorithms.quantization.scheme import Scheme
from nncf.graph.graph import Edge
from nncf.graph.patterns import Tensor

_MOST_CAUSES = 3
_MOST_VISITS = 64


@dataclass(frozen=True, eq=False)
class Cause:
    """Why a quantizer is where it is, as a tree that shares its branches.

    A leaf names what asked (``input of convolution …``), an inner node the operation past which
    the demands of its branches moved; a merge of several demands has no text.
    """

    text: str = ""
    branches: tuple[Cause, ...] = ()

    def __str__(self) -> str:
        asked: dict[str, None] = {}
        passed: dict[str, None] = {}
        for cause in self._walk():
            if cause.text:
                (passed if cause.branches else asked)[cause.text] = None
        asked = asked or {self._first_leaf().text: None}  # all of them deeper than the walk went
        text = _enumerate(list(asked))
        return f"{text}, moved up through {_enumerate(list(passed))}" if passed else text

    def _first_leaf(self) -> Cause:
        cause = self
        while cause.branches:
            cause = cause.branches[0]
        return cause

    def _walk(self) -> Iterator[Cause]:
        waiting = [self]
        seen: set[int] = set()
        while waiting and len(seen) < _MOST_VISITS:
            cause = waiting.pop(0)
            if id(cause) not in seen:
                seen.add(id(cause))
                yield cause
                waiting.extend(cause.branches)


def _enumerate(items: list[str]) -> str:
    shown = items[:_MOST_CAUSES]
    if len(items) > _MOST_CAUSES:
        shown.append("more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


@dataclass(frozen=True, eq=False)
class Demand:
    """A quantizer on its way up the graph: the schemes it may have, best first.

    Demands of one ``group`` (see ``Groups``) become one quantizer with one range.
    """

    schemes: Schemes
    cause: Cause
    group: int | None = None

    def through(self, operation: str, *, per_tensor: bool) -> Demand:
        """Return the demand after moving up past an operation."""
        cause = Cause(operation, (self.cause,))
        schemes = only_per_tensor(self.schemes) if per_tensor else self.schemes
        return Demand(schemes, cause, self.group)


@dataclass(frozen=True, eq=False)
class Site:
    """A place for a quantizer: the readers ``edges`` of a tensor, all of them if ``whole``."""

    tensor: Tensor
    edges: tuple[Edge, ...]
    demand: Demand
    whole: bool


@dataclass
class Groups:
    """Numbers of unified-scale groups, joined when their demands meet (a disjoint-set forest)."""

    parents: list[int] = field(default_factory=list)

    def new(self) -> int:
        self.parents.append(len(self.parents))
        return len(self.parents) - 1

    def root(self, group: int) -> int:
        while self.parents[group] != group:
            self.parents[group] = self.parents[self.parents[group]]
            group = self.parents[group]
        return group

    def join(self, groups: Iterable[int | None]) -> int | None:
        """Return the one group that all of these now are; None when there is none."""
        roots = sorted({self.root(group) for group in groups if group is not None})
        for other in roots[1:]:
            self.parents[other] = roots[0]
        return roots[0] if roots else None


def only_per_tensor(schemes: Schemes) -> Schemes:
    return tuple(scheme for scheme in schemes if not scheme.per_channel)


def merge(demands: Sequence[Demand], groups: Groups) -> Demand | None:
    """Return one demand that satisfies all, None when no scheme does."""
    if len(demands) == 1:
        return demands[0]
    schemes = common_schemes(tuple(demand.schemes for demand in demands))
    if not schemes:
        return None
    group = groups.join(demand.group for demand in demands)
    return Demand(schemes, Cause(branches=tuple(demand.cause for demand in demands)), group)


@functools.lru_cache(maxsize=4096)
def common_schemes(lists: tuple[Schemes, ...]) -> Schemes:
    """Return the schemes that occur in all lists, best first.

    Best is the lowest sum of positions in the lists; then more bits, per tensor, symmetric. A
    scheme without a sign agrees with one that has it.
    """
    first = lists[0]
    if all(other == first for other in lists):
        return first
    ranked: list[tuple[tuple[int, int, bool, bool], Scheme]] = []
    for position, scheme in enumerate(first):
        agreed: Scheme | None = scheme
        total = position
        for other in lists[1:]:
            place, agreed = _find(other, agreed)
            if agreed is None:
                break
            total += place
        if agreed is not None:
            rank = (total, -agreed.bits, agreed.per_channel, agreed.mode != "symmetric")
            ranked.append((rank, agreed))
    return tuple(scheme for _, scheme in sorted(ranked, key=lambda item: item[0]))


def _find(schemes: Schemes, wanted: Scheme) -> tuple[int, Scheme | None]:
    for place, scheme in enumerate(schemes):
        signs = {scheme.signed, wanted.signed} - {None}
        if len(signs) > 1:
            continue
        sign = signs.pop() if signs else None
        if replace(scheme, signed=sign) == replace(wanted, signed=sign):
            return place, replace(wanted, signed=sign)
    return 0, None


def partition(demands: Sequence[tuple[Edge, Demand]], groups: Groups) -> list[list[int]]:
    """Split demands on one tensor into as few mergeable parts as a single pass finds.

    Returns positions; the part that comes first holds the first demand.
    """
    parts: list[tuple[Demand, list[int]]] = []
    for position, (_, demand) in enumerate(demands):
        for place, (sofar, members) in enumerate(parts):
            if common_schemes((sofar.schemes, demand.schemes)):
                merged = merge((sofar, demand), groups)
                assert merged is not None  # just seen to have a common scheme
                parts[place] = (merged, [*members, position])
                break
        else:
            parts.append((demand, [position]))
    return [members for _, members in parts]
