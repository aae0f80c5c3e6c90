# SPDX-License-Identifier: Apache-2.0
"""The door to mixed precision: what there is to choose here, and layouts with what was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nncf.algorithms.mixed_precision import hawq
from nncf.algorithms.mixed_precision.manual import assign
from nncf.algorithms.mixed_precision.plan_file import entries_of
from nncf.algorithms.mixed_precision.space import Product, Quantizer, Space
from nncf.algorithms.quantization.constraints import NOTHING_OPEN, OpenWidths
from nncf.algorithms.quantization.options import QuantizationOptions
from nncf.algorithms.quantization.placement import Placement
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.traits import PASSING
from nncf.algorithms.quantization.weights import finish_weight
from nncf.compression.algorithm import Compressed, Given
from nncf.compression.layout import Insert, Layout
from nncf.config.structures import QuantizationPrecisionInitArgs
from nncf.errors import ConfigError, DataError
from nncf.graph.address import Point
from nncf.graph.graph import Graph
from nncf.graph.multiplications import positions, samples_in
from nncf.logging import nncf_logger

_ALL_WIDTHS = tuple(range(8, 0, -1))


def open_widths(options: QuantizationOptions) -> OpenWidths:
    """Return which widths placement leaves open for ``initializer.precision``."""
    precision = options.initializer.precision
    if precision is None:
        return NOTHING_OPEN
    if precision.type == "manual":
        return OpenWidths(_ALL_WIDTHS, by_scope=True)
    return OpenWidths(tuple(sorted(set(precision.bits), reverse=True)))


# --- by scope ------------------------------------------------------------------------------------


def given_by_scope(
    placement: Placement, options: QuantizationOptions, graph: Graph, device: str
) -> Layout:
    """Return the layout with the widths of ``bitwidth_per_scope``. Raises ConfigError."""
    precision: Any = options.initializer.precision
    chosen = assign(
        entries_of(precision.bitwidth_per_scope),
        Space(_quantizers(placement)),
        graph,
        device=device,
        validate=options.validate_scopes,
    )
    return _with_widths(placement, placement.layout, chosen, "bitwidth_per_scope")


def _with_widths(
    placement: Placement, layout: Layout, widths: Mapping[str, int], by: str
) -> Layout:
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


def _quantizers(placement: Placement) -> dict[str, Quantizer]:
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


# --- by search -----------------------------------------------------------------------------------


def searched(
    placement: Placement,
    precision: Any,
    given: Given,
    initialize_weights: Callable[[Compressed], None],
) -> Layout:
    """Return the layout with the widths that a search finds on the model, which stays as it is.

    ``initialize_weights`` sets the ranges of weights in an attempt. Raises ConfigError when there
    is nothing to choose, DataError when what the search needs is not registered.
    """
    device = given.config.options.target_device
    space = _space(placement, precision.bits, given.graph, device)
    backend, layout = given.backend, given.layout

    def traces() -> Mapping[str, float]:
        with given.attempt(layout) as compressed:
            names = list(space.weights)
            found: Mapping[str, float] = backend.average_traces(
                compressed.model, names, _trace_wish(precision, given)
            )
        return found

    def errors(bits: int) -> Mapping[str, float]:
        widths = {name: bits for name, q in space.weights.items() if bits in q.widths}
        with given.attempt(_with_widths(placement, layout, widths, "trial")) as compressed:
            initialize_weights(compressed)
            quantizers = {name: compressed.ops[name] for name in widths}
            found: Mapping[str, float] = backend.rounding_errors(
                compressed.model, quantizers, given.forward
            )
        return found

    if precision.traces_per_layer_path is None:
        _trace_wish(precision, given)  # raises now rather than later
    folder = Path(given.config.options.log_dir) if backend.is_main_process() else None
    evidence = hawq.Evidence(traces, errors, backend.load_numbers)
    with backend.together():
        widths = hawq.choose(precision, space, evidence, folder)
    return _with_widths(placement, layout, backend.from_main(widths), precision.type)


def _trace_wish(precision: Any, given: Given) -> Any:
    if not given.config.has_extra_struct(QuantizationPrecisionInitArgs):
        raise DataError(
            'initializer.precision: type "hawq" differentiates the loss, but no criterion is '
            "registered. Call nncf.register_default_init_args(nncf_config, train_loader, "
            "criterion=…) before create_compressed_model, or give traces_per_layer_path."
        )
    registered = given.config.get_extra_struct(QuantizationPrecisionInitArgs)

    def loss(outputs: Any, target: Any) -> Any:
        return registered.criterion_fn(outputs, target, registered.criterion)

    return given.backend.TraceWish(
        registered.data_loader,
        loss,
        samples=precision.num_data_points,
        vectors=precision.iter_number,
        tolerance=precision.tolerance,
        device=registered.device,
    )


def _space(placement: Placement, bits: tuple[int, ...], graph: Graph, device: str) -> Space:
    """Return what there is to choose. Raises ConfigError when that is nothing."""
    weights = {p: site for site in placement.weights for p in site.points}
    quantizers = {}
    for name, quantizer in _quantizers(placement).items():
        widths = tuple(b for b in quantizer.widths if b in bits) or quantizer.widths
        mixed = not quantizer.weight and any(point in weights for point in quantizer.points)
        frozen = quantizer.weight and not weights[quantizer.points[0]].parameter.trainable
        if mixed or frozen:  # a range that weights and activations share stays as usual
            widths = quantizer.widths[:1]
        quantizers[name] = replace(quantizer, widths=widths)
    _check_choice(quantizers, bits, device)
    return Space(quantizers, tuple(_products(placement, quantizers, graph)))


def _check_choice(quantizers: Mapping[str, Quantizer], bits: tuple[int, ...], device: str) -> None:
    weights = [quantizer for quantizer in quantizers.values() if quantizer.weight]
    listed = sorted(set(bits))
    fixed = [q for q in weights if len(q.widths) == 1]
    if len(fixed) == len(weights):
        has = sorted({b for q in weights for b in q.widths})
        raise ConfigError(
            f"initializer.precision.bits = {listed} leaves nothing to choose: on target_device "
            f"{device}, and with the bits that other options settle, all {len(weights)} weights "
            f"have {has} bits. Expected a weight with a choice: set "
            '"target_device": "TRIAL" (or "VPU"), give more bits, or remove the section.'
        )
    lacking = [q for q in weights if set(q.widths) != set(listed)]
    if lacking:
        shown = "; ".join(f"{q.name}: {sorted(q.widths)}" for q in lacking[:5])
        nncf_logger.warning(
            "initializer.precision.bits = %s cannot be had everywhere on target_device %s: %d of %d "
            "weights have fewer choices (%s%s).",
            *(listed, device, len(lacking), len(weights), shown, "; …" if len(lacking) > 5 else ""),
        )


def _products(
    placement: Placement, quantizers: Mapping[str, Quantizer], graph: Graph
) -> Iterator[Product]:
    """Yield the operations that multiply a quantized weight with what comes in."""
    stands = {point: q.name for q in quantizers.values() if not q.weight for point in q.points}
    names = {point: q.name for q in quantizers.values() if q.weight for point in q.points}
    samples = samples_in(graph)
    for site in placement.weights:
        for operation, point in zip(site.operations, site.points, strict=True):
            if point in names:
                flops = 2 * positions(operation) / samples * math.prod(site.parameter.shape)
                incoming = _incoming(operation.key, stands, graph)
                yield Product(names[point], incoming, flops)


def _incoming(key: str, stands: Mapping[Point, str], graph: Graph) -> str | None:
    """Return the activation quantizer that an operation's data comes through, None without any."""
    waiting, seen = [key], {key}
    while waiting:
        for edge in graph.inputs_of(waiting.pop()):
            places = (
                Point(edge.target, "input", edge.input_port),
                Point(edge.source, "output", edge.output_port),
            )
            for place in places:
                if place in stands:
                    return stands[place]
            if edge.source not in seen and graph[edge.source].kind.name in PASSING:
                seen.add(edge.source)
                waiting.append(edge.source)
    return None
