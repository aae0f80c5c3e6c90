# SPDX-License-Identifier: Apache-2.0
"""Bit widths by search: the space of a placement, and what can be measured on its model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nncf.algorithms.mixed_precision import autoq, hawq
from nncf.algorithms.mixed_precision.report import check_plots
from nncf.algorithms.mixed_precision.space import Product, Quantizer, Space, Widths
from nncf.algorithms.quantization.placement import Placement
from nncf.algorithms.quantization.precision import quantizers_of, with_widths
from nncf.algorithms.quantization.traits import PASSING
from nncf.compression.algorithm import Compressed, Given
from nncf.compression.layout import Layout
from nncf.config.structures import AutoQPrecisionInitArgs, QuantizationPrecisionInitArgs
from nncf.errors import ConfigError, DataError
from nncf.graph.address import Point
from nncf.graph.graph import Graph
from nncf.graph.multiplications import positions, samples_in
from nncf.logging import nncf_logger, only_warnings


@dataclass(frozen=True)
class Search:
    """Searches the widths of a placement's quantizers on its model, which stays as it is.

    ``initialize(compressed)`` sets the ranges of an attempt and adapts its batch norms,
    ``initialize_weights`` sets the ranges of its weights alone.
    """

    placement: Placement
    precision: Any
    given: Given
    initialize: Callable[[Compressed], None]
    initialize_weights: Callable[[Compressed], None]

    def run(self) -> Layout:
        """Return the layout with the widths that were found.

        Raises ConfigError when there is nothing to choose, LevelError for a limit out of reach,
        DataError when what the search needs is not registered or does not fit.
        """
        device = self.given.config.options.target_device
        space = _space(self.placement, self.precision.bits, self.given.graph, device)
        folder = Path(self.given.config.options.log_dir)
        writes = self.given.backend.is_main_process()
        if self.precision.dump_init_precision_data:
            check_plots()
        by = self._hawq if self.precision.type == "hawq" else self._autoq
        widths = self.given.backend.from_main(by(space, folder if writes else None))
        return self._layout(widths, self.precision.type)

    def _layout(self, widths: Widths, by: str) -> Layout:
        return with_widths(self.placement, self.given.layout, widths, by)

    # --- second derivatives --------------------------------------------------------------------

    def _hawq(self, space: Space, folder: Path | None) -> dict[str, int]:
        backend, given = self.given.backend, self.given
        wish = None
        if self.precision.traces_per_layer_path is None:
            wish = _trace_wish(self.precision, given)

        def traces() -> Mapping[str, float]:
            with backend.together(), given.attempt(given.layout) as compressed:
                names = list(space.weights)
                found: Mapping[str, float] = backend.average_traces(compressed.model, names, wish)
            return found

        def errors(bits: int) -> Mapping[str, float]:
            widths = {name: bits for name, q in space.weights.items() if bits in q.widths}
            with given.attempt(self._layout(widths, "trial")) as compressed:
                self.initialize_weights(compressed)
                quantizers = {name: compressed.ops[name] for name in widths}
                found: Mapping[str, float] = backend.rounding_errors(
                    compressed.model, quantizers, given.forward
                )
            return found

        evidence = hawq.Evidence(traces, errors, backend.load_numbers)
        return hawq.choose(self.precision, space, evidence, folder)

    # --- an agent ------------------------------------------------------------------------------

    def _autoq(self, space: Space, folder: Path | None) -> dict[str, int]:
        from nncf.algorithms.mixed_precision.torch import DeepAgent

        options, backend, given = self.precision, self.given.backend, self.given
        autoq.check(options, space, given.config.options.target_device)
        evaluate = _evaluation(options, given)

        def judge(widths: Widths) -> float:
            attempt = given.attempt(self._layout(widths, "trial"))
            trial = backend.trial(given.model, evaluate.loader)
            with only_warnings(), trial, attempt as compressed:
                self.initialize(compressed)
                return evaluate(compressed.model)

        with backend.trial(given.model, evaluate.loader):
            full_score = evaluate(given.model)
        agent = DeepAgent(len(autoq.FEATURES) + 1, waiting=options.warmup_iter_number)
        with backend.progress("AutoQ", options.iter_number) as show:
            arena = autoq.Arena(_features(space, given.graph), judge, full_score, show)
            return autoq.choose(options, space, arena, agent, folder)


@dataclass(frozen=True)
class _Evaluation:
    """The user's function, over a share of the data; all processes hear what the first finds."""

    function: Callable[[Any, Any], float]
    loader: Any
    part: Any
    backend: Any

    def __call__(self, model: Any) -> float:
        with self.backend.together():
            score = autoq.finite(self.function(model, self.part))
        found: float = self.backend.from_main(score)
        return found


def _evaluation(options: Any, given: Given) -> _Evaluation:
    if not given.config.has_extra_struct(AutoQPrecisionInitArgs):
        raise DataError(
            'initializer.precision: type "autoq" evaluates models, but no function is registered. '
            "Call nncf.register_default_init_args(nncf_config, train_loader, autoq_eval_fn=…, "
            "val_loader=…) before create_compressed_model. autoq_eval_fn(model, loader) returns a "
            "number, higher for better models."
        )
    registered = given.config.get_extra_struct(AutoQPrecisionInitArgs)
    loader, share = registered.data_loader, options.eval_subset_ratio
    part = loader if share == 1 else Part(loader, share)
    return _Evaluation(registered.eval_fn, loader, part, given.backend)


class Part:
    """The first batches of a loader; its attributes are the loader's."""

    def __init__(self, loader: Any, share: float) -> None:
        try:
            count = len(loader)
        except TypeError as error:
            raise DataError(
                f"initializer.precision.eval_subset_ratio = {share:g}: the evaluation data does not "
                "say how many batches it has. Expected a loader with a length: give one, or set "
                '"eval_subset_ratio": 1.'
            ) from error
        self._loader = loader
        self._count = max(1, math.ceil(count * share - 1e-9))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._loader), self._count)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying asks before there is a loader
            raise AttributeError(name)
        return getattr(self._loader, name)


def _features(space: Space, graph: Graph) -> dict[str, tuple[float, ...]]:
    """Return what an agent sees of each quantizer, in the order of ``autoq.FEATURES``."""
    found = {}
    for place, (name, quantizer) in enumerate(space.quantizers.items()):
        operation = graph[quantizer.points[0].address]
        shapes = [edge.shape for edge in graph.inputs_of(operation.key) if edge.dtype == "float"]
        shape = shapes[0] if shapes else (1, 1)
        channels = shape[1] if len(shape) > 1 else shape[-1] if shape else 1
        facts = operation.attributes
        found[name] = (
            float(operation.kind.name == "depthwise_convolution"),
            float(facts.get("in_channels", channels)),
            float(facts.get("out_channels", channels)),
            float(_first(facts.get("stride", 1))),
            float(_first(facts.get("kernel_size", 1))),
            float(quantizer.values),
            float(math.prod(shape[1:])),
            float(place),
            float(quantizer.weight),
        )
    return found


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) else value


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
    for name, quantizer in quantizers_of(placement).items():
        widths = tuple(b for b in quantizer.widths if b in bits) or quantizer.widths
        mixed = not quantizer.weight and any(point in weights for point in quantizer.points)
        frozen = quantizer.weight and not weights[quantizer.points[0]].parameter.trainable
        if mixed or frozen:  # a range that weights and activations share stays as usual
            widths = quantizer.widths[:1]
        quantizers[name] = replace(quantizer, widths=widths)
    _check_choice(quantizers, bits, device)
    return Space(quantizers, tuple(products_of(placement, quantizers, graph)))


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


def products_of(
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
