# SPDX-License-Identifier: Apache-2.0
"""What a learned mask is, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


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
