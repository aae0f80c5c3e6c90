# SPDX-License-Identifier: Apache-2.0
"""Bit widths that the user writes: which quantizers an entry of ``bitwidth_per_scope`` means.

A scope names operations as everywhere (``nncf.graph.scopes``) and may end in ``|WEIGHT``,
``|OUTPUT`` or ``|INPUT0`` to mean one of the quantizers there. Without an ending it means those
of the operation's weight and of its outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nncf.algorithms.mixed_precision.space import Quantizer, Space
from nncf.errors import ConfigError, hint
from nncf.graph.address import Point
from nncf.graph.graph import Graph
from nncf.graph.scopes import Scopes
from nncf.logging import nncf_logger

KEY = "initializer.precision.bitwidth_per_scope"

_ENDING = re.compile(r"^(?P<scope>.*?)\\?\|(?P<kind>WEIGHT|OUTPUT|INPUT)(?P<port>\d*)$")
_TARGET_TYPE = re.compile(r"^TargetType\.\w+ ")  # how earlier releases printed places

Entries = Sequence[tuple[int, str]]


@dataclass(frozen=True)
class _Wish:
    """One entry: operations by key, and the kind and port of their points (None: see above).

    ``pattern`` is searched in whole points, for expressions such as ``{re}conv.*WEIGHT``.
    """

    keys: frozenset[str]
    kind: str | None = None
    port: int | None = None
    pattern: re.Pattern[str] | None = None

    def fits(self, point: Point) -> bool:
        if self.kind is not None and (
            point.kind != self.kind or self.port not in (None, point.port)
        ):
            return False
        if self.kind is None and point.kind == "input":
            return False
        searched = self.pattern is not None and self.pattern.search(str(point)) is not None
        return searched or point.address in self.keys


def assign(
    entries: Entries, space: Space, graph: Graph, *, device: str, validate: bool = True
) -> dict[str, int]:
    """Return the widths that the entries give, by quantizer; the others keep theirs.

    Raises ConfigError for an entry that no quantizer fits (logged unless ``validate``), for one
    whose width the device or another option rules out, and for two that contradict each other.
    """
    scopes = Scopes(graph)
    places = {name: set(_places(q, graph)) for name, q in space.quantizers.items()}
    given: dict[str, int] = {}
    for index, (bits, scope) in enumerate(entries):
        wish = _read(scope, scopes)
        found = [name for name, points in places.items() if any(map(wish.fits, points))]
        if not found:
            _miss(index, bits, scope, space, validate=validate)
        for name in found:
            _check(index, bits, space.quantizers[name], device)
            other = given.setdefault(name, index)
            if entries[other][0] != bits:
                raise ConfigError(
                    f'{KEY}[{other}] "{entries[other][1]}" gives {entries[other][0]} bits to {name}, '
                    f'and {KEY}[{index}] "{scope}" gives it {bits}. Expected one width for each '
                    "quantizer: narrow one of the scopes, or remove an entry."
                )
    return {name: entries[index][0] for name, index in given.items()}


def _read(text: str, scopes: Scopes) -> _Wish:
    text = _TARGET_TYPE.sub("", text)
    match = _ENDING.match(text)
    if match is None:
        pattern = re.compile(text.replace("{re}", "")) if "{re}" in text else None
        return _Wish(frozenset(scopes.find(text)), pattern=pattern)
    kind, port = match["kind"].lower(), match["port"]
    return _Wish(frozenset(scopes.find(match["scope"])), kind, int(port) if port else None)


def _places(quantizer: Quantizer, graph: Graph) -> Iterator[Point]:
    """Yield the points of a quantizer, its name's too, and the inputs that its output feeds."""
    for point in (Point.parse(quantizer.name), *quantizer.points):
        yield point
        if point.kind == "output":
            for edge in graph.outputs_of(point.address):
                if edge.output_port == point.port:
                    yield Point(edge.target, "input", edge.input_port)


def _check(index: int, bits: int, quantizer: Quantizer, device: str) -> None:
    if bits in quantizer.widths:
        return
    supported = sorted(quantizer.widths)
    reason = "incompatible for the specified target hardware"
    if device == "TRIAL":
        reason = 'settled by "bits" of scope_overrides or of an operation that shares its range'
    raise ConfigError(
        f"{KEY}[{index}]: Failed to assign bitwidth={bits} to `{quantizer.name}`,\n"
        f"because it is {reason} (target_device {device})\n"
        f"Supported quantization configs: {supported} bits. Write one of these, or set "
        '"target_device": "TRIAL", which restricts nothing.'
    )


def _miss(index: int, bits: int, scope: str, space: Space, *, validate: bool) -> None:
    message = (
        f"{KEY}[{index}]: Could not find a quantization point at scope name `{scope}`, failed to "
        f"assign bitwidth {bits} to it."
    )
    if not validate:
        nncf_logger.info(message)
        return
    raise ConfigError(
        f"{message}{hint(scope, space.quantizers)} Name a quantizer as bitwidth_per_scope.json or "
        'compressed_graph.dot in the log directory does, or set "validate_scopes": false to let '
        "unmatched entries pass."
    )
