# SPDX-License-Identifier: Apache-2.0
"""The door to mixed precision: what there is to choose here, and layouts with what was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from nncf.algorithms.mixed_precision.manual import assign
from nncf.algorithms.mixed_precision.plan_file import entries_of
from nncf.algorithms.mixed_precision.space import Quantizer, Space
from nncf.algorithms.quantization.constraints import NOTHING_OPEN, OpenWidths
from nncf.algorithms.quantization.options import QuantizationOptions
from nncf.algorithms.quantization.placement import Placement
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.weights import finish_weight
from nncf.compression.layout import Insert, Layout
from nncf.graph.graph import Graph

_ALL_WIDTHS = tuple(range(8, 0, -1))


def open_widths(options: QuantizationOptions) -> OpenWidths:
    """Return which widths placement leaves open for a search, or for the compression rate."""
    precision = options.initializer.precision
    if options.is_adaptive:
        groups = options.weights, options.activations
        return OpenWidths(*(_widest_first(group.adaptive_bits or ()) for group in groups))
    if precision is None:
        return NOTHING_OPEN
    if precision.type == "manual":
        return OpenWidths(_ALL_WIDTHS, _ALL_WIDTHS, by_scope=True)
    widths = _widest_first(precision.bits)
    return OpenWidths(widths, widths)


def _widest_first(bits: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(bits), reverse=True))


def given_by_scope(
    placement: Placement, options: QuantizationOptions, graph: Graph, device: str
) -> Layout:
    """Return the layout with the widths of ``bitwidth_per_scope``. Raises ConfigError."""
    precision: Any = options.initializer.precision
    chosen = assign(
        entries_of(precision.bitwidth_per_scope),
        Space(quantizers_of(placement)),
        graph,
        device=device,
        validate=options.validate_scopes,
    )
    return with_widths(placement, placement.layout, chosen, "bitwidth_per_scope")


def with_widths(placement: Placement, layout: Layout, widths: Mapping[str, int], by: str) -> Layout:
    """Return the layout with other widths for some quantizers; ``by`` goes into the reasons."""
    inserts = [
        _with_scheme(insert, placement.choices[insert.name][widths[insert.name]], by)
        if insert.name in widths
        else insert
        for insert in layout
    ]
    return Layout(inserts, layout.skipped)


def _with_scheme(insert: Insert, chosen: Scheme, by: str) -> Insert:
    scheme = _scheme(insert)
    if chosen.bits != scheme.bits:
        scheme = replace(scheme, bits=chosen.bits, mode=chosen.mode, signed=chosen.signed)
        if scheme.weight:
            scheme = finish_weight(scheme, half_range=scheme.half_range)
    return replace(insert, op=scheme, reason=f"{insert.reason}; {chosen.bits} bits by {by}")


def _scheme(insert: Insert) -> Scheme:
    assert isinstance(insert.op, Scheme)  # placement makes no others
    return insert.op


def quantizers_of(placement: Placement) -> dict[str, Quantizer]:
    """Return the quantizers of a placement with the widths that each may have."""
    sizes = {p: math.prod(site.parameter.shape) for site in placement.weights for p in site.points}
    return {
        insert.name: Quantizer(
            insert.name,
            insert.points,
            tuple(placement.choices[insert.name]),
            weight=_scheme(insert).weight,
            values=sizes.get(insert.points[0], 0) if _scheme(insert).weight else 0,
        )
        for insert in placement.layout
    }
