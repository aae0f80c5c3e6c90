# SPDX-License-Identifier: Apache-2.0
"""Which channels stay at a given level: uniformly in each group, or ranked over all groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.algorithms.filter_pruning.groups import Limit, PruningGroup
from nncf.compression.channel_map import Kept, count
from nncf.graph.channels import NO_UNIT

Importances = Mapping[int, NDArray[np.float64]]
"""By number of a group, the importance of each of its units."""


class Selection:
    """Chooses the units that stay.

    ``multiple`` is the number that channel counts are kept at, ``units`` how many units there
    are, in groups or not; ``limits`` say what must be left of each axis.
    """

    def __init__(
        self,
        groups: Sequence[PruningGroup],
        importances: Importances,
        *,
        units: int,
        multiple: int,
        limits: Sequence[Limit] = (),
    ) -> None:
        self.groups = groups
        self.importances = importances
        self._limits = Limits(limits, units)
        self._multiple = multiple
        self._by_unit = np.zeros(units)
        for group in self.groups:
            self._by_unit[group.units] = importances[group.number]

    def uniform(self, levels: Mapping[int, float]) -> Kept:
        """Keep the most important units of each group so that its level is at most the given."""
        wanted = {
            group.number: len(group.units) * (1 - levels.get(group.number, 0.0))
            for group in self.groups
        }
        return self._keep(wanted)

    def ranked(self, removed: int) -> Kept:
        """Let go of the ``removed`` least important units of all, rounded up in each group."""
        joined = np.concatenate([self.importances[group.number] for group in self.groups])
        home = np.concatenate(
            [np.full(len(group.units), place) for place, group in enumerate(self.groups)]
        )
        going = np.argsort(joined, kind="stable")[:removed]
        counts = np.bincount(home[going], minlength=len(self.groups))
        wanted = {
            group.number: float(len(group.units) - counts[place])
            for place, group in enumerate(self.groups)
        }
        return self._keep(wanted)

    def _keep(self, wanted: Mapping[int, float]) -> Kept:
        kept = np.ones(len(self._by_unit), dtype=bool)
        for group in self.groups:
            number = group.keepable(wanted[group.number], self._multiple)
            order = np.argsort(-self.importances[group.number], kind="stable")
            kept[group.units[order[number:]]] = False
        self._limits.restore(kept, self._by_unit)
        return kept

    def total(self) -> int:
        return sum(len(group.units) for group in self.groups)


class Limits:
    """Gives back what axes need of the units that were taken."""

    def __init__(self, limits: Sequence[Limit], units: int) -> None:
        self._limits = limits
        self._lengths = np.array([len(limit.units) for limit in limits])
        self._multiples = np.array([limit.multiple for limit in limits])
        self._whole = np.array([limit.whole for limit in limits], dtype=bool)
        joined = np.concatenate([limit.units for limit in limits]) if limits else np.zeros(0, int)
        self._joined = np.where(joined == NO_UNIT, units, joined)  # an index that is always kept
        self._starts = np.cumsum([0, *self._lengths[:-1]])

    def restore(self, kept: Kept, importance: NDArray[np.float64]) -> None:
        """Take units back, the most important first, until every axis has what it needs."""
        while len(self._limits) and (broken := np.flatnonzero(~self._are_kept(kept))).size:
            for place in broken:  # what one axis gets back may break the multiple of another
                self._restore(int(place), kept, importance)

    def _are_kept(self, kept: Kept) -> NDArray[np.bool_]:
        left = np.add.reduceat(np.append(kept, True)[self._joined].astype(int), self._starts)
        return self._may_be_left(left, slice(None))

    def _may_be_left(self, left: Any, place: Any) -> Any:
        missing = self._lengths[place] - left
        allowed = (left > 0) & (left % self._multiples[place] == 0)
        return (missing == 0) | (allowed & ~(self._whole[place] & (missing == 1)))

    def _restore(self, place: int, kept: Kept, importance: NDArray[np.float64]) -> None:
        units = self._limits[place].units
        gone = np.unique(units[(units != NO_UNIT) & ~kept[units]])
        for unit in gone[np.argsort(-importance[gone], kind="stable")]:
            if self._may_be_left(count(units, kept), place):
                return
            kept[unit] = True


def least(low: int, high: int, reaches: Callable[[int], bool]) -> int | None:
    """Return the least number from ``low`` to ``high`` for which ``reaches`` holds, or None.

    ``reaches`` must stay true once it is.
    """
    if not reaches(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle + 1
    return low
