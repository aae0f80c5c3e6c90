# SPDX-License-Identifier: Apache-2.0
"""``create_compressed_model``: from a model and a configuration to a compressed model.

The figure of the house, station by station: capture → plan → merge → rebuild → initialise →
control. A failure at any station leaves the model as it was.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from nncf.algorithms.tensorflow.compression_layer import CompressionLayer
from nncf.compression.algorithm import Algorithm, Compressed, Given
from nncf.compression.claims import in_order
from nncf.compression.controller import BackendActions, CompressionController, Controller
from nncf.compression.dot import write_dot
from nncf.compression.layout import Layout, merge
from nncf.compression.sites import baked_parameters
from nncf.config import NNCFConfig
from nncf.errors import ConfigError, ModelError
from nncf.planning import checked, chosen_algorithms, planned, refuse_foreign
from nncf.tensorflow import initialize
from nncf.tensorflow.capture import Capture, capture
from nncf.tensorflow.compressed_layer import CompressedLayer
from nncf.tensorflow.inputs import example_outputs, symbolic_inputs
from nncf.tensorflow.rebuild import rebuild
from nncf.tensorflow.records import Record, record_of, remember
from nncf.tensorflow.renaming import OPERATIONS, translated
from nncf.tensorflow.strip import strip_compressed

_LOGGER = logging.getLogger("nncf")


def create_compressed_model(
    model: Any,
    config: NNCFConfig | Mapping[str, Any],
    compression_state: Mapping[str, Any] | None = None,
    *,
    dump_graphs: bool = True,
) -> tuple[CompressionController, Any]:
    """Return the controller and a model of the same layers with the configured compression.

    The new model calls the layers of the given one and shares their variables, so there is one
    set of weights: to train one is to train both. It is a ``keras.Model`` made of inputs and
    outputs, of the given model's class where that can be. If the given model was compiled, the
    new one is with the same settings and a fresh optimizer. Create both in the scope of your
    ``tf.distribute`` strategy.

    Args:
        model: a Sequential, functional or subclassed model that has been built.
        config: the configuration, with a data set registered by ``register_default_init_args``
            where initialisation needs data.
        compression_state: what ``get_compression_state()`` returned; the same compression is
            restored and nothing is initialised. Restore the model's weights afterwards.
        dump_graphs: write ``original_graph.dot`` and ``compressed_graph.dot`` to ``log_dir``.

    Raises:
        ConfigError, ScopeNotFound: the configuration is wrong or does not fit the model.
        ModelError: the model is compressed already, or was never built.
        DataError: initialisation needs data that is missing or unusable.
        CheckpointError: ``compression_state`` belongs to another model or configuration.
    """
    _refuse_compressed(model)
    config = checked(config)
    refuse_foreign(config.options, "tensorflow")
    chosen = chosen_algorithms(config)
    captured = capture(model, symbolic_inputs(model, config))
    _tell_of_unreached(model, captured)
    log_dir = Path(config.options.log_dir) if dump_graphs else None
    if log_dir is not None:
        write_dot(log_dir / "original_graph.dot", captured.graph)
    state = None if compression_state is None else translated(compression_state, captured.graph)
    layouts = planned(chosen, captured.graph, state, never_run=captured.unused)
    plan = _informed(_Plan(config, chosen, captured, layouts, state), model)
    controller = _carry_out(plan, model)
    if log_dir is not None:
        write_dot(log_dir / "compressed_graph.dot", captured.graph, merge(plan.layouts.values()))
    return controller, controller.model


@dataclass(frozen=True)
class _Plan:
    """All that is known before the new model is made."""

    config: NNCFConfig
    chosen: list[Algorithm]
    captured: Capture
    layouts: Mapping[str, Layout]
    state: Mapping[str, Any] | None
    prepared: Mapping[str, Any] = field(default_factory=dict)

    def forward(self, model: Any) -> Any:
        """Return what a model makes of one sample of zeros, None where its size is not known."""
        return example_outputs(model, self.captured.trace.inputs)


def _refuse_compressed(model: Any) -> None:
    ours = (CompressionLayer, CompressedLayer)
    if any(isinstance(layer, ours) for layer in model._flatten_layers()):
        raise ModelError(
            "The model object has already been compressed. Expected an uncompressed model: build a "
            "fresh one and compress that. To compress in several ways at once, list the algorithms "
            "in one configuration."
        )


def _tell_of_unreached(model: Any, captured: Capture) -> None:
    """Log what could not be followed, with the reason."""
    missed = [
        f"  {'/'.join((*places.call.scope, places.call.name))}: {places.call.reason}"
        for places in captured.calls
        if places.call.reason
    ]
    if missed:
        _LOGGER.warning(
            "%s: these layers are not followed inside. The layers of Keras that they hold are "
            "compressed one by one, what happens between them stays in floating point:\n%s",
            *(type(model).__name__, "\n".join(missed)),
        )


def _informed(plan: _Plan, model: Any) -> _Plan:
    """Return the plan with what the algorithms learn from the model and its data."""
    layouts = dict(plan.layouts)

    def given(algorithm: Algorithm) -> Given:
        name = algorithm.name
        known = (model, plan.captured.graph, plan.forward, plan.config, initialize)
        return Given(*known, layout=layouts[name], home=_home(name), attempt=_no_attempt)

    if plan.state is None:
        for algorithm in plan.chosen:
            layouts[algorithm.name] = algorithm.refine(given(algorithm))
    prepared = {algorithm.name: algorithm.prepare(given(algorithm)) for algorithm in plan.chosen}
    return replace(plan, layouts=layouts, prepared=prepared)


def _no_attempt(_layout: Layout) -> Any:
    raise ConfigError("This search is offered for PyTorch models only.")


def _carry_out(plan: _Plan, model: Any) -> CompressionController:
    layout = merge(plan.layouts.values())
    ops = _make_ops(layout, model)
    before = [(v, v.numpy()) for v in model.non_trainable_variables]
    compressed = rebuild(model, plan.captured, layout, ops)
    baked = baked_parameters(layout, plan.captured.graph)
    trained = frozenset(id(v) for x in model._flatten_layers() for v in x._trainable_variables)
    remember(compressed, Record(layout, ops, plan.captured, baked, trained))
    try:
        controller = _finish(plan, compressed)
    except BaseException:
        for variable, value in before:  # batch norms may have been adapted already
            variable.assign(value)
        raise
    _compile_like(compressed, model)
    _attach_fit(compressed)
    return controller


def _make_ops(layout: Layout, model: Any) -> dict[str, Any]:
    taken = {layer.name for layer in model._flatten_layers()}
    ops = {}
    for insert in layout:
        name = _free_name(_layer_name(insert.name), taken)
        taken.add(name)
        ops[insert.name] = _home(insert.op.algorithm).make_op(insert, name)
    return ops


def _layer_name(name: str) -> str:
    """Return an Insert's name as that of a layer: ``conv1_Conv2D_0_WEIGHT``."""
    _, slash, rest = name.partition("/")
    return (rest if slash else name).replace("/", "_").replace("|", "_").replace("^", "_")


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _home(algorithm: str) -> Any:
    """Return an algorithm's own file for Keras. Raises ConfigError where it has none."""
    module = f"nncf.algorithms.{algorithm}.tensorflow"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ConfigError(f'"{algorithm}" is offered for PyTorch models only.') from None


def _finish(plan: _Plan, model: Any) -> CompressionController:
    """Initialise the ops, or take over the saved state, and hand them to their controllers."""
    children = {}
    for algorithm in in_order(plan.chosen):
        name = algorithm.name
        compressed = _compressed(plan, model, name)
        if plan.state is None:
            algorithm.initialize(compressed)
        children[name] = algorithm.control(compressed)
    keys = [operation.key for operation in plan.captured.graph.operations()]
    states = {n: {**layout.to_state(), OPERATIONS: keys} for n, layout in plan.layouts.items()}
    ordered = [children[algorithm.name] for algorithm in plan.chosen]
    controller = CompressionController(model, ordered, states, _actions(model, plan.config))
    _add_losses(model, ordered)
    if plan.state is not None and "ctrl_state" in plan.state:
        controller.load_state(plan.state["ctrl_state"])
    return controller


def _add_losses(model: Any, children: list[Controller]) -> None:
    """Let ``fit`` add the losses of the algorithms that have one; evaluation is without them."""
    owners = [child for child in children if type(child).loss is not Controller.loss]
    if not owners:
        return
    compute: Callable[..., Any] = model.compute_loss

    def compute_loss(*args: Any, training: bool = True, **kwargs: Any) -> Any:
        found = compute(*args, training=training, **kwargs)
        return found + sum(child.loss() for child in owners) if training else found

    object.__setattr__(model, "compute_loss", compute_loss)


def _compressed(plan: _Plan, model: Any, name: str) -> Compressed:
    """Return what an algorithm is told of the model that its ops run in."""
    record = record_of(model)
    layout = plan.layouts[name]
    return Compressed(
        model,
        ops={insert.name: record.ops[insert.name] for insert in layout},
        graph=plan.captured.graph,
        layout=layout,
        config=plan.config,
        backend=initialize,
        direct_parameters=record.baked,
        parameter_shapes=record.shapes(),
        home=_home(name),
        notes=record.notes,
        prepared=plan.prepared[name],
    )


def _actions(model: Any, config: NNCFConfig) -> BackendActions:
    def export(path: str, **options: Any) -> Any:
        from nncf.tensorflow.export import export_model

        return export_model(model, config, path, **options)

    def check(path: str, save_format: str | None) -> None:
        from nncf.tensorflow.export import check_export

        check_export(path, save_format)

    return BackendActions(
        zero_loss=lambda: tf.zeros(()),
        strip=partial(strip_compressed, model),
        export=export,
        check_export=check,
        broadcast=partial(initialize.agree, model),
    )


def _attach_fit(model: Any) -> None:
    """Give the model ``accuracy_aware_fit``, which lives in a layer above this one."""

    def accuracy_aware_fit(*args: Any, **kwargs: Any) -> Any:
        home = importlib.import_module("nncf.training.tensorflow")
        return home.accuracy_aware_fit(model, *args, **kwargs)

    object.__setattr__(model, "accuracy_aware_fit", accuracy_aware_fit)


def _compile_like(compressed: Any, model: Any) -> None:
    """Compile the new model as the given one was, with an optimizer that has seen nothing."""
    settings = getattr(model, "_compile_config", None)
    if not model.compiled or settings is None:
        return
    chosen = dict(settings.config)
    if isinstance(chosen.get("optimizer"), keras.optimizers.Optimizer):
        optimizer = chosen["optimizer"]
        chosen["optimizer"] = type(optimizer).from_config(optimizer.get_config())
    compressed.compile(**chosen)
