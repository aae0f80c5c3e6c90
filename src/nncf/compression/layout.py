# SPDX-License-Identifier: Apache-2.0
"""The Layout: which CompressionOp runs where, and why; a plain value without a framework."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from nncf.graph.address import Point

# Order of CompressionOps that meet at one point: masks run before quantizers, and after binarizers,
# which know no zero.
PRIORITY_BINARIZATION = 1
PRIORITY_PRUNING = 2
PRIORITY_SPARSITY = 3
PRIORITY_QUANTIZATION = 11


class OpDescription(Protocol):
    """What a CompressionOp is, as a value: a frozen dataclass such as ``Scheme``.

    ``algorithm`` names the folder under ``nncf/algorithms`` whose backend files build the
    running op from this description; ``tag`` tells ops of several algorithms at one point
    apart; ``to_state`` returns JSON-able data.
    """

    algorithm: ClassVar[str]
    tag: ClassVar[str]

    def to_state(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Insert:
    """One CompressionOp and all the points where it runs (several share one op and its state).

    ``name`` is the op's key in checkpoints: ``label``, or else the first point as text, with the
    ``tag`` of the op's kind behind it (``LeNet/Conv2d[conv1]/conv2d_0|WEIGHT|MASK``; quantizers
    have none). A label is for tensors without a point of their own: a model input, quantized at its readers, is
    ``/nncf_model_input_0|OUTPUT``. ``shape`` is the shape of the op's parameters (``(1,)`` per
    tensor, ones but for the channel axis per channel). ``reason`` says for a reader why the op
    is here.
    """

    points: tuple[Point, ...]
    op: OpDescription
    shape: tuple[int, ...] = (1,)
    priority: int = PRIORITY_QUANTIZATION
    reason: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        name = self.label or str(self.points[0])
        return f"{name}|{self.op.tag}" if self.op.tag else name


@dataclass(frozen=True)
class Skip:
    """An operation that an algorithm looked at and left alone, and why.

    ``in_float`` is False where nothing is lost: the operation only moves values, or runs as
    one with a compressed neighbour.
    """

    address: str
    reason: str
    in_float: bool = True


class Layout:
    """An ordered list of Inserts, and what was skipped. Prints as a table."""

    def __init__(self, inserts: Iterable[Insert] = (), skipped: Iterable[Skip] = ()) -> None:
        self.inserts = tuple(inserts)
        self.skipped = tuple(skipped)

    def __iter__(self) -> Iterator[Insert]:
        return iter(self.inserts)

    def __len__(self) -> int:
        return len(self.inserts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.inserts == other.inserts

    def __hash__(self) -> int:
        return hash(self.inserts)

    def to_state(self) -> dict[str, Any]:
        """Return the layout as JSON-able data (see ``from_state``)."""
        return {
            "inserts": [
                {
                    "points": [str(point) for point in insert.points],
                    "algorithm": insert.op.algorithm,
                    "op": insert.op.to_state(),
                    "shape": list(insert.shape),
                    "priority": insert.priority,
                    "reason": insert.reason,
                    "label": insert.label,
                }
                for insert in self.inserts
            ],
            "skipped": [[skip.address, skip.reason, skip.in_float] for skip in self.skipped],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], op_from_state: Any) -> Layout:
        """Rebuild a layout; ``op_from_state(algorithm, state)`` rebuilds each op description."""
        inserts = [
            Insert(
                points=tuple(Point.parse(text) for text in item["points"]),
                op=op_from_state(item["algorithm"], item["op"]),
                shape=tuple(item["shape"]),
                priority=item["priority"],
                reason=item["reason"],
                label=item["label"],
            )
            for item in state["inserts"]
        ]
        return cls(inserts, [Skip(*skip) for skip in state["skipped"]])

    def __repr__(self) -> str:
        rows = [f"Layout of {len(self)} compression ops"]
        names = [insert.name for insert in self.inserts]
        described = [str(insert.op) for insert in self.inserts]
        widths = [max(map(len, column), default=0) for column in (names, described)]
        for insert, name, text in zip(self.inserts, names, described, strict=True):
            why = insert.reason or "asked for"
            rows.append(f"  {name:<{widths[0]}}  {text:<{widths[1]}}  {why}")
            others = insert.points if insert.label else insert.points[1:]
            where = "runs at" if insert.label else "also at"
            rows.extend(f"      {where} {point}" for point in others)
        if self.skipped:
            rows.append(f"{len(self.skipped)} operations left as they are")
            width = max(len(skip.address) for skip in self.skipped)
            rows.extend(f"  {skip.address:<{width}}  {skip.reason}" for skip in self.skipped)
        return "\n".join(rows)


def merge(layouts: Iterable[Layout]) -> Layout:
    """Join the layouts of several algorithms; at one point lower priority runs first."""
    layouts = list(layouts)
    inserts = [insert for layout in layouts for insert in layout]
    skipped = [skip for layout in layouts for skip in layout.skipped]
    return Layout(sorted(inserts, key=lambda insert: insert.priority), skipped)
