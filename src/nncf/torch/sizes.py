# SPDX-License-Identifier: Apache-2.0
"""Sizes that a model's code repeats as numbers, corrected where its tensors have become shorter.

``x.view(n, 12, 64)`` names the number of heads; a model that has lost heads needs another one.
Where the number comes from a layer's attribute that follows the weight, nothing has to be done;
for the others the call's arguments are corrected each time, at the address of the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nncf.compression.channel_map import Correction

Path = tuple[str | int, ...]


@dataclass
class Sizes:
    """For addresses of operations, which numbers of their calls are written for others."""

    rules: dict[str, tuple[Correction, ...]] = field(default_factory=dict)

    def correct(
        self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call at an address with its numbers corrected."""
        inferred = []
        for rule in self.rules[key]:
            if rule.inferred:
                inferred.append(rule)
            else:
                args, kwargs = _corrected(args, kwargs, rule.path, rule)
        for rule in inferred:
            is_free = len(inferred) == 1 and not _leaves_one_open(args, kwargs)
            new = Correction(rule.path, None, -1) if is_free else rule
            args, kwargs = _corrected(args, kwargs, rule.path, new)
        return args, kwargs

    def then(self, later: Sizes) -> Sizes:
        """Return the corrections of a model that has lost channels twice."""
        keys = {**self.rules, **later.rules}
        return Sizes({k: self.rules.get(k, ()) + later.rules.get(k, ()) for k in keys})


def _corrected(
    args: tuple[Any, ...], kwargs: dict[str, Any], path: Path, rule: Correction
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if path[0] == "args":
        return _replaced(args, path[1:], rule), kwargs
    changed: dict[str, Any] = {
        name: _replaced(value, path[2:], rule) if name == path[1] else value
        for name, value in kwargs.items()
    }
    return args, changed


def _leaves_one_open(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a size is -1 already: PyTorch infers one at most."""
    values = [*args[1:], *kwargs.values()]
    flat = [v for value in values for v in (value if isinstance(value, (tuple, list)) else [value])]
    return any(isinstance(value, int) and value == -1 for value in flat)


def _replaced(value: Any, path: Path, rule: Correction) -> Any:
    if not path:
        return rule.new if rule.old is None or value == rule.old else value
    if isinstance(value, slice):
        bounds = {"start": value.start, "stop": value.stop}
        bounds[str(path[0])] = _replaced(bounds[str(path[0])], (), rule)
        return slice(bounds["start"], bounds["stop"], value.step)
    if isinstance(value, (tuple, list)):
        place = int(path[0])
        if place >= len(value):
            return value
        items = [
            _replaced(item, path[1:], rule) if index == place else item
            for index, item in enumerate(value)
        ]
        return items if isinstance(value, list) else tuple(items)
    return value
