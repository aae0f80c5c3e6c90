# SPDX-License-Identifier: Apache-2.0
"""How channels are hidden at one point, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Fill = Literal["zero", "mean", "statistics", "mean_square"]


@dataclass(frozen=True)
class ChannelMask:
    """Along which axes channels are hidden, and by which values (see ``MaskedChannels``)."""

    algorithm: ClassVar[str] = "filter_pruning"
    tag: ClassVar[str] = "CHANNELS"

    axes: tuple[int, ...]
    fill: Fill = "zero"

    def to_state(self) -> dict[str, Any]:
        return {"axes": list(self.axes), "fill": self.fill}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChannelMask:
        return cls(tuple(state["axes"]), state["fill"])

    def __str__(self) -> str:
        along = "axis" if len(self.axes) == 1 else "axes"
        hidden = {"zero": "channels masked", "mean": "channels without effect on the mean",
                  "statistics": "channels without effect on mean and variance",
                  "mean_square": "channels without effect on the mean square"}  # fmt: skip
        return f"{hidden[self.fill]} along {along} {', '.join(map(str, self.axes))}"
