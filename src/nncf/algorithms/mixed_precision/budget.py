# SPDX-License-Identifier: Apache-2.0
"""Budgets: what a choice of widths costs, weight by weight and product by product.

| budget | of a weight of n values, b bits | of a product of f FLOPs, b and a bits |
|---|---|---|
| ``compression_ratio`` | | f · max(b, a) |
| ``bytes`` | n · b / 8 | |
| ``bit_operations`` | | f / 2 · b · a |
| ``latency`` | | what the table says |

An activation in floating point counts with 8 bits towards the ratio, whatever the weight's are,
and with 32 in ``bit_operations``. The ratio is 8 · Σ f over the sum of the costs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nncf.algorithms.mixed_precision.space import Product, Quantizer, Space, Widths
from nncf.errors import ConfigError, hint
from nncf.graph.address import Point
from nncf.option_messages import value_text

Kind = Literal["compression_ratio", "bytes", "bit_operations", "latency"]
Latencies = Mapping[str, Mapping[str, float]]

_FLOAT_BITS = 32
_UNITS = {"bytes": "bytes", "bit_operations": "bit operations", "latency": "ms"}


@dataclass(frozen=True)
class Budget:
    """A limit on the sum of the costs of all weights and products."""

    kind: Kind
    limit: float
    table: Latencies | None = None

    @property
    def counts_products(self) -> bool:
        """Whether products cost anything, or weights alone do."""
        return self.kind != "bytes"

    def of_weight(self, weight: Quantizer, bits: int) -> float:
        # Counted in bits: whole numbers, whose sums have no rounding.
        return float(weight.values * bits) if self.kind == "bytes" else 0.0

    def of_product(self, product: Product, weight: int, activation: int | None) -> float:
        if self.kind == "compression_ratio":
            return product.flops * (8 if activation is None else max(weight, activation))
        if self.kind == "bit_operations":
            return product.flops / 2 * weight * (activation or _FLOAT_BITS)
        if self.kind == "latency":
            row = (self.table or {})[product.weight]
            return row.get(f"{weight}/{activation or _FLOAT_BITS}", row.get(str(weight), 0.0))
        return 0.0

    def cost(self, space: Space, widths: Widths) -> float:
        """Return what a choice costs."""
        weights = sum(self.of_weight(q, widths[q.name]) for q in space.weights.values())
        return weights + sum(
            self.of_product(p, widths[p.weight], widths[p.activation] if p.activation else None)
            for p in space.products
        )

    def describe(self, cost: float, space: Space) -> str:
        """Return a cost in words: ``compression ratio 1.52``, ``40,960 bytes``."""
        if self.kind == "compression_ratio":
            return f"compression ratio {ratio_of(cost, space):.4g}"
        value = cost / 8 if self.kind == "bytes" else cost
        return (
            f"{value:,.6g} {_UNITS[self.kind]}"
            if value < 1
            else f"{value:,.1f} {_UNITS[self.kind]}"
        )


def ratio_of(cost: float, space: Space) -> float:
    """Return the compression ratio of a model whose bit complexity is ``cost``."""
    return 8 * sum(product.flops for product in space.products) / cost if cost else 1.0


def read_budget(options: Any, space: Space) -> Budget:
    """Return the budget of HawqOptions. Raises ConfigError for a table that does not fit."""
    wanted = options.budget
    if wanted is None:
        flops = sum(product.flops for product in space.products)
        return Budget("compression_ratio", 8 * flops / options.compression_ratio)
    if wanted.type == "bytes":
        return Budget("bytes", 8 * wanted.value)
    table = _read_table(wanted.table, space) if wanted.type == "latency" else None
    return Budget(wanted.type, wanted.value, table)


def _read_table(path: str, space: Space) -> Latencies:
    """Read ``{layer: {bits: milliseconds}}``; a layer is named with or without ``|WEIGHT``."""
    where = f'initializer.precision.budget.table "{path}"'
    expected = 'Expected {"layer": {"4": 0.8, "8": 1.1}} with milliseconds for every width.'
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {
            str(layer): {str(bits): float(value) for bits, value in row.items()}
            for layer, row in content.items()
        }
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror}). {expected}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where} is no table of latencies ({error}). {expected}") from error
    rows = {}
    for product in space.products:
        names = (product.weight, Point.parse(product.weight).address)
        row = next((found[name] for name in names if name in found), None)
        if row is None:
            raise ConfigError(f"{where} has no layer {names[1]}.{hint(names[1], found)} {expected}")
        _check_row(where, names[1], row, _pairs(product, space))
        rows[product.weight] = row
    return rows


def _pairs(product: Product, space: Space) -> list[tuple[int, int]]:
    activations: tuple[int, ...] = (_FLOAT_BITS,)
    if product.activation is not None:
        activations = space.quantizers[product.activation].widths
    widths = space.quantizers[product.weight].widths
    return [(weight, activation) for weight in widths for activation in activations]


def _check_row(
    where: str, layer: str, row: Mapping[str, float], pairs: list[tuple[int, int]]
) -> None:
    missing = [f"{w}/{a}" for w, a in pairs if f"{w}/{a}" not in row and str(w) not in row]
    if missing or min(row.values(), default=0.0) < 0:
        raise ConfigError(
            f"{where}: layer {layer} has {value_text(dict(row))}. Expected milliseconds, not below "
            f"zero, for {missing[0] if missing else 'each width'} (weight/activation, or the "
            "weight's alone). Complete the row, or give fewer bits to choose from."
        )
