# SPDX-License-Identifier: Apache-2.0
"""The door to mixed precision: what there is to choose here, and layouts with what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
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

_ALL_WIDTHS = tuple(range(8, 1, -1))


def open_widths(options: QuantizationOptions) -> OpenWidths:
    """Return which widths placement leaves open for ``initializer.precision``."""
    precision = options.initializer.precision
    if precision is None:
        return NOTHING_OPEN
    if precision.type == "manual":
        return OpenWidths(_ALL_WIDTHS, by_scope=True)
    return OpenWidths(tuple(sorted(set(precision.bits), reverse=True)))


def space_of(placement: Placement) -> Space:
    """Return the quantizers of a placement with the widths that each may have."""
    sizes = {p: site.parameter.shape for site in placement.weights for p in site.points}
    quantizers = {}
    for insert in placement.layout:
        shape = sizes.get(insert.points[0], ())
        widths, weight = placement.widths[insert.name], _scheme(insert).weight
        quantizers[insert.name] = Quantizer(
            insert.name, insert.points, widths, weight, _size(shape)
        )
    return Space(quantizers)


def given_by_scope(
    placement: Placement, options: QuantizationOptions, graph: Graph, device: str
) -> Layout:
    """Return the layout with the widths of ``bitwidth_per_scope``. Raises ConfigError."""
    precision: Any = options.initializer.precision
    chosen = assign(
        entries_of(precision.bitwidth_per_scope),
        space_of(placement),
        graph,
        device=device,
        validate=options.validate_scopes,
    )
    return with_widths(placement.layout, chosen, "bitwidth_per_scope")


def with_widths(layout: Layout, widths: Mapping[str, int], by: str) -> Layout:
    """Return the layout with other widths for some quantizers; ``by`` goes into the reasons."""
    return Layout((_with_width(insert, widths, by) for insert in layout), layout.skipped)


def _with_width(insert: Insert, widths: Mapping[str, int], by: str) -> Insert:
    if insert.name not in widths:
        return insert
    scheme, bits = _scheme(insert), widths[insert.name]
    if bits != scheme.bits:
        scheme = replace(scheme, bits=bits)
        if scheme.weight:
            scheme = finish_weight(scheme, half_range=scheme.half_range)
    return replace(insert, op=scheme, reason=f"{insert.reason}; {bits} bits by {by}")


def _scheme(insert: Insert) -> Scheme:
    assert isinstance(insert.op, Scheme)  # placement makes no others
    return insert.op


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size if shape else 0
