# SPDX-License-Identifier: Apache-2.0
"""Sizes that a model's code repeats as numbers, corrected where its tensors have become shorter.

``x.view(n, 12, 64)`` names the number of heads; a model that has lost heads needs another one.
Where the number comes from a layer's attribute that follows the weight, nothing has to be done;
for the others the call's arguments are corrected each time, at the address of the call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Path = tuple[str | int, ...]


@dataclass
class Sizes:
    """For addresses of operations, which number at which place is written for another one.

    ``rules`` maps an address to ``(path, old, new)``; a number that is not ``old`` (the code has
    computed it from a tensor) stays, unless ``old`` is None.
    """

    rules: dict[str, tuple[tuple[Path, int | None, int], ...]] = field(default_factory=dict)

    def correct(
        self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call at an address with its numbers corrected."""
        for path, old, new in self.rules[key]:
            if path[0] == "args":
                args = _replaced(args, path[1:], old, new)
            else:
                kwargs = {
                    name: _replaced(value, path[2:], old, new) if name == path[1] else value
                    for name, value in kwargs.items()
                }
        return args, kwargs


def _replaced(value: Any, path: Path, old: int | None, new: int) -> Any:
    if not path:
        return new if old is None or value == old else value
    if isinstance(value, slice):
        bounds = {"start": value.start, "stop": value.stop}
        bounds[str(path[0])] = _replaced(bounds[str(path[0])], (), old, new)
        return slice(bounds["start"], bounds["stop"], value.step)
    if isinstance(value, (tuple, list)):
        place = int(path[0])
        if place >= len(value):
            return value
        items = [
            _replaced(item, path[1:], old, new) if index == place else item
            for index, item in enumerate(value)
        ]
        return items if isinstance(value, list) else tuple(items)
    return value
