# SPDX-License-Identifier: Apache-2.0
"""How a tensor is quantized, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

Mode = Literal["symmetric", "asymmetric"]


@dataclass(frozen=True)
class Scheme:
    """Bits, grid and granularity of one quantizer.

    ``signed`` None means that range initialisation decides by whether a negative value was
    seen. ``half_range`` keeps 8-bit weights on the inner half of the grid so that 16-bit
    saturating multiply-adds of processors without VNNI cannot overflow. ``narrow_range`` drops
    the lowest level, which makes a signed grid symmetric about zero. ``channel_axis`` is the
    axis along which a per-channel quantizer has one range each, None per tensor.
    ``scaled_gradient`` lets the range learn at a pace that fits its values, however many there
    are and whatever the number of bits (``torch.FakeQuantizer.gradient_factor``).
    """

    algorithm: ClassVar[str] = "quantization"
    tag: ClassVar[str] = ""

    bits: int = 8
    mode: Mode = "symmetric"
    signed: bool | None = None
    per_channel: bool = False
    channel_axis: int | None = None
    narrow_range: bool = False
    half_range: bool = False
    logarithm_scale: bool = False
    weight: bool = False
    lr_multiplier: float | None = None
    scaled_gradient: bool = False

    @property
    def has_few_bits(self) -> bool:
        """Whether codes are so few that ranges start and learn in another way."""
        return self.bits < 8

    def levels(self, signed: bool) -> tuple[int, int]:
        """Return ``(level_low, level_high)``, the ends of the integer grid.

        Symmetric signed: −2^(b−1)…2^(b−1)−1, unsigned and asymmetric: 0…2^b−1, with one bit
        less for ``half_range`` (signed only), and without the lowest level (signed) or the
        highest (unsigned) for ``narrow_range``, which asymmetric quantizers ignore. One signed
        bit stands for −1 and 1, without a zero between.
        """
        if self.mode == "asymmetric":
            return 0, 2 ** (self.bits - self.half_range) - 1
        if signed and self.bits == 1:
            return -1, 1
        if signed:
            high = 2 ** (self.bits - self.half_range - 1)
            return -high + self.narrow_range, high - 1
        return 0, 2**self.bits - 1 - self.narrow_range

    def to_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Scheme:
        return cls(**state)

    def __str__(self) -> str:
        sign = {None: "sign by data", True: "signed", False: "unsigned"}[self.signed]
        sign = "" if self.mode == "asymmetric" else f" {sign}"
        grain = "per channel" if self.per_channel else "per tensor"
        grain += "" if self.channel_axis is None else f" (axis {self.channel_axis})"
        half = " half range" if self.half_range else ""
        return f"{self.bits}-bit {self.mode}{sign}{half} {grain}"
