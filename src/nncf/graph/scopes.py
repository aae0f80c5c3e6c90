# SPDX-License-Identifier: Apache-2.0
"""Which operations the scopes of a configuration name.

A scope is either ``{re}`` and a regular expression, searched anywhere in an address, or a plain
name: an address, or the leading part of one, component by component. A sub-tree of the model
may be named as if its class were the root: ``Bottleneck/Conv2d[conv1]`` means that layer in
every ``Bottleneck``. ``NNCFConv2d[conv1]``, as earlier releases wrote it, equals
``Conv2d[conv1]``, and ``RELU`` equals ``relu`` (see ``Address.spellings``). Where calls of one
layer are numbered, ``conv^0`` and ``conv^1``, ``conv`` names all of them.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Sequence

from nncf.errors import ScopeNotFound, hint
from nncf.graph.address import Address
from nncf.graph.graph import Graph

logger = logging.getLogger("nncf")

_MARK = "{re}"
_TWIN_PREFIX = re.compile(r"^NNCF(?:User)?(?=[A-Z_])")


class Scopes:
    """Answers which operations of one graph a scope matches; build it once per graph."""

    def __init__(self, graph: Graph) -> None:
        self.addresses = tuple(operation.address for operation in graph.operations())

    def match(
        self, scopes: Iterable[str], *, where: str = "ignored_scopes", validate: bool = True
    ) -> dict[str, str]:
        """Return ``{key of an operation: the first scope that matches it}``.

        Raises ScopeNotFound, naming the nearest addresses, when a scope matches nothing and
        ``validate`` is set; otherwise that is logged. ``where`` is the JSON path of the list.
        """
        found: dict[str, str] = {}
        missing: list[tuple[int, str]] = []
        for position, scope in enumerate(scopes):
            keys = self.find(scope)
            if not keys:
                missing.append((position, scope))
            for key in keys:
                found.setdefault(key, scope)
        if missing:
            self._report(missing, where, validate=validate)
        return found

    def find(self, scope: str) -> Sequence[str]:
        """Return the keys of the operations that one scope matches, in order of execution."""
        if _MARK in scope:
            return self._search(scope.replace(_MARK, ""))
        return self._by_prefix.get(_components(scope), ())

    def _search(self, expression: str) -> list[str]:
        pattern = re.compile(expression)
        return [
            str(address)
            for address in self.addresses
            if any(pattern.search(spelling) for spelling in address.spellings())
        ]

    @functools.cached_property
    def _by_prefix(self) -> dict[tuple[str, ...], list[str]]:
        table: dict[tuple[str, ...], list[str]] = {}
        for address in self.addresses:
            for prefix in dict.fromkeys(_prefixes(address)):
                table.setdefault(prefix, []).append(str(address))
        return table

    def _report(self, missing: list[tuple[int, str]], where: str, *, validate: bool) -> None:
        lines = [f'{where}[{place}] "{scope}" matches no operation.' for place, scope in missing]
        if not validate:
            for line in lines:
                logger.info(line)
            return
        addresses = [str(address) for address in self.addresses]
        texts = [
            line + hint(scope.replace(_MARK, ""), addresses)
            for line, (_, scope) in zip(lines, missing, strict=True)
        ]
        raise ScopeNotFound(
            "\n".join(texts) + "\nName operations as original_graph.dot in the log directory "
            'does, or set "validate_scopes": false to let unmatched scopes pass.'
        )


def _prefixes(address: Address) -> Iterable[tuple[str, ...]]:
    """Yield every sequence of components by which a plain scope can name the address."""
    scope = [_original(part) for part in address.scope]
    yield from _prefixes_of(scope, address)
    if any("^" in part for part in scope):  # one call of several of a layer
        yield from _prefixes_of([part.partition("^")[0] for part in scope], address)


def _prefixes_of(scope: list[str], address: Address) -> Iterable[tuple[str, ...]]:
    names = {spelling.rpartition("/")[2] for spelling in address.spellings()}
    for start in range(max(len(scope), 1)):
        parts = scope[start:]
        if start:
            parts[0] = parts[0].partition("[")[0]
        yield from (tuple(parts[:end]) for end in range(1, len(parts) + 1))
        yield from ((*parts, name) for name in sorted(names))


def _components(scope: str) -> tuple[str, ...]:
    return tuple(_original(part) for part in scope.split("/") if part)


def _original(component: str) -> str:
    """Return a component without the prefix that earlier releases gave replaced classes."""
    return _TWIN_PREFIX.sub("", component)
