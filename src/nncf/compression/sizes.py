# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a file go, tensor by tensor, as a table whose total is the file's size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One tensor: the bytes that it takes in the file, and those that it would take dense.

    A tensor that shares its memory takes none, as it would in a file of dense tensors.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dense: int
    packed: int
    form: str


@dataclass(frozen=True)
class SizeTable:
    """Where every byte of a file goes: ``total`` is the size of the file. Prints as a table.

    ``header`` are the bytes that belong to no tensor; ``what`` says what they are.
    """

    rows: tuple[Size, ...]
    header: int
    what: tuple[str, str] = ("header", "names, shapes, forms")

    @property
    def summary(self) -> str:
        """One line: the size, and how many times smaller than with all tensors dense."""
        smaller = f", {self.dense / self.total:.2f} × smaller than FP32" if self.dense else ""
        return f"{self.total:,} bytes{smaller}"

    @property
    def dense(self) -> int:
        """Bytes of all tensors when dense, without a header."""
        return sum(row.dense for row in self.rows)

    @property
    def total(self) -> int:
        return self.header + sum(row.packed for row in self.rows)

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows

    def __str__(self) -> str:
        lines = [["tensor", "shape", "dtype", "dense bytes", "stored bytes", "form"]]
        for row in self.rows:
            shape = "×".join(map(str, row.shape)) or "number"
            lines.append(
                [row.name, shape, row.dtype, f"{row.dense:,}", f"{row.packed:,}", row.form]
            )
        name, form = self.what
        lines.append([name, "", "", "", f"{self.header:,}", form])
        smaller = f"{self.dense / self.total:.2f} × smaller" if self.dense else ""
        lines.append(["total", "", "", f"{self.dense:,}", f"{self.total:,}", smaller])
        widths = [max(len(line[column]) for line in lines) for column in range(6)]
        return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(cells: list[str], widths: list[int]) -> str:
    both = zip(cells, widths, strict=True)
    padded = [c.rjust(w) if n in (3, 4) else c.ljust(w) for n, (c, w) in enumerate(both)]
    return "  ".join(padded).rstrip()
