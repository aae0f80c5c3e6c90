# SPDX-License-Identifier: Apache-2.0
"""From a configuration and a Graph to the layouts of its algorithms, for every backend."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nncf import algorithms
from nncf.compression.algorithm import Algorithm
from nncf.compression.claims import plan_together
from nncf.compression.layout import Layout, Skip
from nncf.config import NNCFConfig
from nncf.errors import CheckpointError, ConfigError
from nncf.graph.graph import Graph

_LOGGER = logging.getLogger("nncf")


def checked(config: Any) -> NNCFConfig:
    """Return what the user passed as an NNCFConfig. Raises ConfigError for anything else."""
    if isinstance(config, NNCFConfig):
        return config
    if isinstance(config, Mapping):
        return NNCFConfig.from_dict(config)
    raise ConfigError(
        f"create_compressed_model: expected an NNCFConfig second, found {config!r}. Make one with "
        "NNCFConfig.from_json(path) or NNCFConfig.from_dict({…})."
    )


def chosen_algorithms(config: NNCFConfig) -> list[Algorithm]:
    """Return the algorithms of a configuration, in its order."""
    options = config.options
    chosen = [algorithms.load(item.algorithm)(item, options) for item in options.compression]
    if not chosen:
        _LOGGER.warning('The configuration has no "compression" section: nothing is compressed.')
    return chosen


def planned(
    chosen: Sequence[Algorithm],
    graph: Graph,
    state: Mapping[str, Any] | None,
    *,
    never_run: Iterable[str] = (),
) -> dict[str, Layout]:
    """Return the layout of each algorithm by name: planned anew, or as ``state`` saved it.

    ``never_run`` are the paths of layers that the graph does not have; "" is the model itself.
    Raises CheckpointError when the state is of another model or configuration.
    """
    if state is None:
        plans = plan_together(chosen, graph)
        reason = "did not run when the model was looked at in evaluation mode, so it stays as it is"
        unused = [Skip(layer or "the model itself", reason) for layer in never_run]
        return {name: Layout(plan, (*plan.skipped, *unused)) for name, plan in plans.items()}
    builder = state.get("builder_state", {})
    found = {}
    for algorithm in chosen:
        if algorithm.name not in builder:
            raise CheckpointError(
                f"compression_state has no builder state of '{algorithm.name}', only of: "
                f"{', '.join(builder) or 'nothing'}. Use the configuration of the saved run."
            )
        found[algorithm.name] = _restored(algorithm, builder[algorithm.name], graph)
    return found


def _restored(algorithm: Algorithm, state: Mapping[str, Any], graph: Graph) -> Layout:
    try:
        layout = Layout.from_state(state, lambda _, op: algorithm.op_from_state(op))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"The builder state of '{algorithm.name}' is damaged ({error!r}). Expected what "
            "get_compression_state() of this release returned."
        ) from error
    missing = [p.address for insert in layout for p in insert.points if p.address not in graph]
    if missing:
        raise CheckpointError(
            f"compression_state speaks of {len(missing)} operations that this model does not have, "
            f'the first is "{missing[0]}". Build the model that the state was saved for.'
        )
    return layout


def refuse_foreign(options: Any, backend: str, where: str = "") -> None:
    """Raise ConfigError for an option that was given and that ``backend`` does not offer.

    ``options`` are Options of any depth; ``where`` is the path that leads to them.
    """
    for name, field in type(options).model_fields.items():
        if name not in options.model_fields_set:
            continue
        path = f"{where}.{name}" if where else name
        value = getattr(options, name)
        extra = field.json_schema_extra
        offered = extra.get("backends") if isinstance(extra, dict) else None
        if isinstance(offered, list) and backend not in offered and value is not None:
            raise ConfigError(
                f"{path}: this option is offered for {', '.join(map(str, offered))} models only, "
                f"and this is a {backend} model. Remove it."
            )
        items = value if isinstance(value, (tuple, list)) else (value,)
        for number, item in enumerate(items):
            if hasattr(type(item), "model_fields"):
                inner = f"{path}[{number}]" if items is value else path
                refuse_foreign(item, backend, inner)
