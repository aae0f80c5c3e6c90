# SPDX-License-Identifier: Apache-2.0
"""How a tensor is binarized, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

Rule = Literal["xnor", "dorefa", "threshold"]


@dataclass(frozen=True)
class Binarizer:
    """One binarizer: of a weight ("xnor", "dorefa") or of an activation ("threshold").

    ``channel_axis`` is the axis of the tensor that has a scale (xnor) or a threshold for each
    index, None where one is for all. ``lr_multiplier`` is a factor on the gradients of what an
    activation's binarizer learns.
    """

    algorithm: ClassVar[str] = "binarization"
    tag: ClassVar[str] = "BINARY"

    rule: Rule
    channel_axis: int | None = None
    lr_multiplier: float | None = None

    @property
    def weight(self) -> bool:
        return self.rule != "threshold"

    def to_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Binarizer:
        return cls(**state)

    def __str__(self) -> str:
        if not self.weight:
            return "1 bit, learned scale, threshold per channel"
        return f"1 bit, mean magnitude per {'tensor' if self.channel_axis is None else 'channel'}"
