# SPDX-License-Identifier: Apache-2.0
"""Which channels stay at a given level: uniformly in each group, or ranked over all groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nncf.algorithms.filter_pruning.groups import PruningGroup
from nncf.compression.channel_map import Kept

Importances = Mapping[int, NDArray[np.float64]]
"""By number of a group, the importance of each of its units."""


class Selection:
    """Chooses the units that stay; ``multiple`` is the number that channel counts are kept at."""

    def __init__(
        self, groups: Sequence[PruningGroup], importances: Importances, *, units: int, multiple: int
    ) -> None:
        self.groups = groups
        self.importances = importances
        self._units = units
        self._multiple = multiple

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
        kept = np.ones(self._units, dtype=bool)
        for group in self.groups:
            number = group.keepable(wanted[group.number], self._multiple)
            order = np.argsort(-self.importances[group.number], kind="stable")
            kept[group.units[order[number:]]] = False
        return kept

    def total(self) -> int:
        return sum(len(group.units) for group in self.groups)


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
