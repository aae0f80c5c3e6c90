# SPDX-License-Identifier: Apache-2.0
"""Statistics: what is compressed and how far, as values that print as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any


def grid(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a plain-text table with a rule under the header.

    >>> print(grid(["a", "b"], [[1, "x"]]))
    +---+---+
    | a | b |
    +===+===+
    | 1 | x |
    +---+---+
    """
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(fill: str) -> str:
        return "+" + "+".join(fill * (width + 2) for width in widths) + "+"

    def text(row: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"

    body = [part for row in cells[1:] for part in (text(row), line("-"))]
    return "\n".join([line("-"), text(cells[0]), line("="), *body])


class Statistics:
    """Statistics of all algorithms of a model: one attribute per algorithm, by its name.

    An algorithm that the model does not have is None (``statistics.quantization``). Iterates
    over ``(name, statistics)``; each part has ``to_str()``, and ``tensorboard()`` where it has
    numbers to draw over time.
    """

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._parts.get(name)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._parts.items())

    @classmethod
    def join(cls, several: Iterable[Statistics]) -> Statistics:
        return cls(**{name: part for statistics in several for name, part in statistics})

    def to_str(self) -> str:
        """Return all tables, a blank line between algorithms."""
        return "\n\n".join(part.to_str() for _, part in self)

    def __repr__(self) -> str:
        return self.to_str() or "no statistics"


def prepare_for_tensorboard(statistics: Statistics) -> dict[str, float]:
    """Return the numbers of all algorithms that are worth drawing over time, by their tags.

    ``for tag, value in prepare_for_tensorboard(controller.statistics()).items():
    writer.add_scalar(tag, value, epoch)``
    """
    drawn = (part.tensorboard() for _, part in statistics if hasattr(part, "tensorboard"))
    return {tag: value for part in drawn for tag, value in part.items()}
