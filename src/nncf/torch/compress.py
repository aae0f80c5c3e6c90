# SPDX-License-Identifier: Apache-2.0
"""``create_compressed_model``: from a model and a configuration to a compressed model.

The figure of the house, station by station: capture → plan → merge → install → initialise →
control. A failure at any station leaves the model as it was.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nncf.compression.algorithm import Algorithm, Compressed, Given
from nncf.compression.claims import in_order
from nncf.compression.controller import BackendActions, CompressionController
from nncf.compression.dot import write_dot
from nncf.compression.layout import Layout, merge
from nncf.config import NNCFConfig
from nncf.errors import ModelError
from nncf.planning import checked, chosen_algorithms, planned
from nncf.torch import hooks, initialize
from nncf.torch.capture import Capture, capture
from nncf.torch.distributed import agree, is_main_process
from nncf.torch.inputs import example_arguments
from nncf.torch.intercept import Compression, compression_of, install, uninstall
from nncf.torch.sizes import Sizes
from nncf.torch.state import load_state
from nncf.torch.strip import strip_compressed
from nncf.torch.structure import tensors_in


def create_compressed_model(  # noqa: PLR0913  # the documented signature
    model: nn.Module,
    config: NNCFConfig | Mapping[str, Any],
    compression_state: Mapping[str, Any] | None = None,
    dummy_forward_fn: Callable[[nn.Module], Any] | None = None,
    wrap_inputs_fn: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None,
    wrap_outputs_fn: Callable[[Any], Any] | None = None,
    dump_graphs: bool = True,
    *,
    resuming_state_dict: Mapping[str, Any] | None = None,
) -> tuple[CompressionController, nn.Module]:
    """Add the configured compression to a model, in place, and return its controller.

    The model keeps its class, its attributes and all original ``state_dict`` keys; what
    compression adds lives in its submodule ``compression``.

    Args:
        model: a trained model. It is run once, in evaluation mode, to find its operations.
        config: the configuration, with data loaders registered by
            ``register_default_init_args`` where initialisation needs data.
        compression_state: what ``get_compression_state()`` returned; the same compression is
            restored and nothing is initialised. Load the model's ``state_dict`` afterwards.
        dummy_forward_fn: runs the model once, ``dummy_forward_fn(model)``, in place of a forward
            with tensors made from ``input_info`` or taken from the registered loader. It may
            mark input tensors with ``nncf_model_input``.
        wrap_inputs_fn: ``(args, kwargs) -> (args, kwargs)``, called before the captured forward;
            it may mark inputs with ``nncf_model_input``.
        wrap_outputs_fn: called with the captured forward's result; it may mark outputs with
            ``nncf_model_output``.
        dump_graphs: write ``original_graph.dot`` and ``compressed_graph.dot`` to ``log_dir``.
        resuming_state_dict: deprecated; a state dict of a compressed model.

    Returns:
        ``(controller, model)``; the model is the object that was given.

    Raises:
        ConfigError, ScopeNotFound: the configuration is wrong or does not fit the model.
        ModelError: the model is compressed already, or its forward fails on the inputs.
        DataError: initialisation needs data that is missing or unusable.
        CheckpointError: ``compression_state`` belongs to another model or configuration.
    """
    _refuse_compressed(model)
    config = checked(config)
    state, weights = _sort_out_states(compression_state, resuming_state_dict)
    chosen = chosen_algorithms(config)
    forward, inputs = _forward(model, config, dummy_forward_fn, wrap_inputs_fn)
    with _without_sizes(model) as sizes:
        captured = _run_capture(model, (forward, inputs, wrap_outputs_fn), sizes)
    log_dir = Path(config.options.log_dir) if dump_graphs and is_main_process() else None
    if log_dir is not None:
        write_dot(log_dir / "original_graph.dot", captured.graph)
    layouts = planned(chosen, captured.graph, state, never_run=_never_run(captured))
    plan = _informed(_Plan(config, chosen, captured, layouts, state), model, forward)
    with _without_sizes(model):
        controller = _carry_out(plan, model, weights)
    if log_dir is not None:
        write_dot(log_dir / "compressed_graph.dot", captured.graph, merge(plan.layouts.values()))
    return controller, model


@contextmanager
def _without_sizes(model: nn.Module) -> Iterator[Sizes]:
    """Yield what corrects the calls of a model that has lost channels, taken out of it meanwhile.

    It comes back at the end, unless a new compression has taken its place.
    """
    former = compression_of(model)
    if former is not None:
        uninstall(model)
    try:
        yield Sizes() if former is None else former.sizes
    finally:
        if former is not None and compression_of(model) is None:
            install(model, former)


@dataclass(frozen=True)
class _Plan:
    """All that is known before the model is touched."""

    config: NNCFConfig
    chosen: list[Algorithm]
    captured: Capture
    layouts: Mapping[str, Layout]
    state: Mapping[str, Any] | None
    prepared: Mapping[str, Any] = field(default_factory=dict)


def _informed(plan: _Plan, model: nn.Module, forward: Callable[[nn.Module], Any]) -> _Plan:
    """Return the plan with what the algorithms learn from the model and its data."""
    layouts = dict(plan.layouts)

    def given(algorithm: Algorithm) -> Given:
        name = algorithm.name
        attempt = partial(_attempt, model, plan.captured, plan.config, name)
        known = (model, plan.captured.graph, forward, plan.config, initialize)
        return Given(*known, layout=layouts[name], home=_home(name), attempt=attempt)

    if plan.state is None:
        with _without_sizes(model):
            for algorithm in plan.chosen:
                layouts[algorithm.name] = algorithm.refine(given(algorithm))
    prepared = {algorithm.name: algorithm.prepare(given(algorithm)) for algorithm in plan.chosen}
    return replace(plan, layouts=layouts, prepared=prepared)


def _carry_out(
    plan: _Plan, model: nn.Module, weights: Mapping[str, Any] | None
) -> CompressionController:
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    _install(model, merge(plan.layouts.values()), plan.captured)
    try:
        with hooks.leaving_all_modes():  # Ctrl-C ends a forward without its hooks
            controller = _finish(plan, model)
        if weights is not None:
            load_state(model, weights, is_resume=True)
    except BaseException:
        uninstall(model)
        with torch.no_grad():
            for buffer, value in before:  # batch norms may have been adapted already
                buffer.copy_(value)
        raise
    return controller


def _refuse_compressed(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"create_compressed_model needs a torch.nn.Module, got {type(model).__name__}. "
            "Pass the model object itself."
        )
    compression = compression_of(model)
    if compression is not None and len(compression.ops):
        raise ModelError(
            "The model object has already been compressed. Expected an uncompressed model: build a "
            f"fresh instance of {type(model).__name__} and compress that. To compress in several "
            "ways at once, list the algorithms in one configuration."
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ModelError(
            f"The model is wrapped in {type(model).__name__}. Compress the model first, then wrap "
            "what create_compressed_model returns."
        )


def _sort_out_states(
    state: Mapping[str, Any] | None, resuming: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Tell a compression state from the bare state dict that earlier releases took."""
    if resuming is not None:
        warnings.warn(
            "resuming_state_dict is deprecated: save controller.get_compression_state() beside the "
            "state dict, pass it as compression_state, then call load_state(model, state_dict).",
            DeprecationWarning,
            stacklevel=3,
        )
    if state is not None and not {"builder_state", "ctrl_state"} & set(state):
        return None, state.get("state_dict", state)
    return state, resuming


def _forward(
    model: nn.Module,
    config: NNCFConfig,
    dummy_forward_fn: Callable[[nn.Module], Any] | None,
    wrap_inputs_fn: Callable[..., Any] | None,
) -> tuple[Callable[[nn.Module], Any], tuple[Any, ...]]:
    """Return ``forward(model)`` on example inputs, and the tensors that are the model's inputs."""
    if dummy_forward_fn is not None:
        return dummy_forward_fn, ()
    args, kwargs = example_arguments(model, config)

    def forward(module: nn.Module) -> Any:
        given = (args, kwargs) if wrap_inputs_fn is None else wrap_inputs_fn(args, kwargs)
        return module(*given[0], **given[1])

    return forward, () if wrap_inputs_fn is not None else (args, kwargs)


def _run_capture(model: nn.Module, run: tuple[Any, Any, Any], sizes: Sizes) -> Capture:
    """Capture ``forward(model)``; ``run`` is the forward, its inputs, and what marks outputs."""
    forward, inputs, mark_outputs = run
    try:
        with hooks.leaving_all_modes():
            return capture(model, forward, inputs=inputs, mark_outputs=mark_outputs, sizes=sizes)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        shapes = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
        raise ModelError(
            f"The forward of {type(model).__name__} failed on the tensors made for it (shapes "
            f"{shapes}): {type(error).__name__}: {error}. Correct input_info in the configuration, "
            "register a data loader, or pass dummy_forward_fn."
        ) from error


def _never_run(captured: Capture) -> list[str]:
    """Return every layer whose parameters no captured forward used."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in captured.unused))


def _install(model: nn.Module, layout: Layout, captured: Capture) -> None:
    ops = {}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for insert in layout:
        ops[insert.name] = _home(insert.op.algorithm).make_op(insert).to(device)
    compression = Compression(layout, ops, captured)
    compression.train(model.training)
    install(model, compression)


def _home(algorithm: str) -> Any:
    """Return an algorithm's own file for PyTorch."""
    return importlib.import_module(f"nncf.algorithms.{algorithm}.torch")


@contextmanager
def _attempt(
    model: nn.Module, captured: Capture, config: NNCFConfig, algorithm: str, layout: Layout
) -> Iterator[Compressed]:
    """Let the ops of one algorithm run in the model for the time being."""
    _install(model, layout, captured)
    try:
        with hooks.leaving_all_modes():
            yield _compressed(model, captured, config, algorithm, layout)
    finally:
        uninstall(model)


def _compressed(
    model: nn.Module, captured: Capture, config: NNCFConfig, algorithm: str, layout: Layout
) -> Compressed:
    """Return what an algorithm is told of the model that its ops run in."""
    compression = compression_of(model)
    assert compression is not None
    ours = set(compression.parameters())
    return Compressed(
        model,
        ops={insert.name: compression.ops[insert.name] for insert in layout},
        graph=captured.graph,
        layout=layout,
        config=config,
        backend=initialize,
        direct_parameters=compression.baked_parameters,
        parameter_shapes={n: tuple(p.shape) for n, p in model.named_parameters() if p not in ours},
        home=_home(algorithm),
        notes=compression.notes,
    )


def _finish(plan: _Plan, model: nn.Module) -> CompressionController:
    """Initialise the ops, or take over the saved state, and hand them to their controllers."""
    children = {}
    for algorithm in in_order(plan.chosen):
        name = algorithm.name
        told = _compressed(model, plan.captured, plan.config, name, plan.layouts[name])
        compressed = replace(told, prepared=plan.prepared[name])
        if plan.state is None:
            algorithm.initialize(compressed)
        children[algorithm.name] = algorithm.control(compressed)
    if plan.state is None:
        agree(model)
    layout_states = {name: layout.to_state() for name, layout in plan.layouts.items()}
    actions = _actions(model, plan.config)
    ordered = [children[algorithm.name] for algorithm in plan.chosen]
    controller = CompressionController(model, ordered, layout_states, actions)
    if plan.state is not None and "ctrl_state" in plan.state:
        controller.load_state(plan.state["ctrl_state"])
    return controller


def _actions(model: nn.Module, config: NNCFConfig) -> BackendActions:
    def zero_loss() -> torch.Tensor:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        return torch.zeros((), device=device)

    def export(path: str, **options: Any) -> Any:
        from nncf.torch.export_model import export_model

        return export_model(model, config, path, **options)

    def check(path: str, save_format: str | None) -> None:
        from nncf.torch.export_model import check_export

        check_export(config, path, save_format)

    return BackendActions(
        zero_loss=zero_loss,
        strip=partial(strip_compressed, model),
        export=export,
        check_export=check,
        broadcast=partial(agree, model),
    )
