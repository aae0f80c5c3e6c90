# SPDX-License-Identifier: Apache-2.0
"""What there is to choose: quantizers with their possible widths, and where they meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nncf.graph.address import Point

Widths = Mapping[str, int]
"""By name of a quantizer, its bit width."""


@dataclass(frozen=True)
class Quantizer:
    """One quantizer: where it runs, and the bit widths that it may have, the usual one first.

    ``values`` is the number of weights that it rounds, 0 for activations.
    """

    name: str
    points: tuple[Point, ...]
    widths: tuple[int, ...]
    weight: bool
    values: int = 0


@dataclass(frozen=True)
class Product:
    """One operation that multiplies a weight with an activation, ``flops`` of it per sample.

    A multiply-accumulate counts as two operations. ``activation`` is the quantizer of what comes
    in, None where that is in floating point.
    """

    weight: str
    activation: str | None
    flops: float


@dataclass(frozen=True)
class Space:
    """All quantizers of a model by name, in order of execution, and its products."""

    quantizers: Mapping[str, Quantizer]
    products: tuple[Product, ...] = ()

    @cached_property
    def weights(self) -> dict[str, Quantizer]:
        return {name: q for name, q in self.quantizers.items() if q.weight}

    @cached_property
    def partners(self) -> dict[str, tuple[str, ...]]:
        """By activation quantizer, the weights that its values are multiplied with."""
        found: dict[str, dict[str, None]] = {}
        for product in self.products:
            if product.activation is not None:
                found.setdefault(product.activation, {})[product.weight] = None
        return {name: tuple(weights) for name, weights in found.items()}
