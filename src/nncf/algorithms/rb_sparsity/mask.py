# SPDX-License-Identifier: Apache-2.0
"""What a learned mask is, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

TOLERANCE = 0.05
"""How far the share of kept weights may be from its target for the loss to be 1."""


def pull(kept: Sequence[Any], sizes: Sequence[int], levels: Sequence[Any], is_local: bool) -> Any:
    """Return ``((kept / all − (1 − level)) / 0.05)²``, with local levels the sum of each mask's.

    ``kept`` are the numbers of weights that the masks keep, tensors with gradients, ``sizes`` those
    of all their weights.
    """
    if is_local:
        parts = zip(kept, sizes, levels, strict=True)
        return sum(_squared(count / size, level) for count, size, level in parts)
    return _squared(sum(kept) / sum(sizes), levels[0])


def _squared(density: Any, level: Any) -> Any:
    return ((density - (1 - level)) / TOLERANCE) ** 2


@dataclass(frozen=True)
class LearnedMask:
    """A mask whose logits are trained, with ``lr_multiplier`` as a factor on their gradient."""

    algorithm: ClassVar[str] = "rb_sparsity"
    tag: ClassVar[str] = "MASK"

    lr_multiplier: float | None = None

    def to_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LearnedMask:
        return cls(**state)

    def __str__(self) -> str:
        factor = "" if self.lr_multiplier is None else f", gradient × {self.lr_multiplier:g}"
        return f"learned mask{factor}"
