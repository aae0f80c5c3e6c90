# SPDX-License-Identifier: Apache-2.0
"""Which layers share a level, and what level each has when the schedule's is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nncf.algorithms.magnitude_sparsity.options import LevelOverride, MagnitudeSparsityOptions
from nncf.algorithms.weight_placement import inserts_at
from nncf.compression.layout import Layout
from nncf.errors import ConfigError
from nncf.graph.graph import Graph
from nncf.graph.scopes import Scopes


@dataclass(frozen=True)
class Pool:
    """Masks, by Insert name, whose weights compete with each other; and the pool's level."""

    names: tuple[str, ...]
    level: float


def matched_overrides(
    options: MagnitudeSparsityOptions, layout: Layout, graph: Graph
) -> dict[str, LevelOverride]:
    """Return ``scope_overrides`` by Insert name.

    Raises ScopeNotFound for a scope without operations, ConfigError for one without masks.
    """
    found: dict[str, LevelOverride] = {}
    scopes = Scopes(graph)
    for scope, override in options.scope_overrides.items():
        where = "magnitude_sparsity.scope_overrides"
        keys = scopes.match([scope], where=where, validate=options.validate_scopes)
        names = inserts_at(layout, keys)
        if keys and not names:
            raise ConfigError(
                f'{where}: "{scope}" matches {next(iter(keys))}, but no operation whose weight is '
                "made sparse. Expected the scope of a layer with a weight that is not ignored."
            )
        for name in names:
            found[name] = override
    return found


def pools_at(
    level: float,
    options: MagnitudeSparsityOptions,
    names: tuple[str, ...],
    overrides: Mapping[str, LevelOverride],
) -> list[Pool]:
    """Return the pools when all layers together are to have ``level``.

    Layers with levels of their own have gone the same share of their way as the others have,
    and never go beyond their target.
    """
    first, last = options.sparsity_init, options.params.final_level()
    share = (level - first) / (last - first) if last != first else float(level >= last)
    share = min(max(share, 0.0), 1.0)
    common = tuple(name for name in names if name not in overrides)
    pools = [Pool(common, level)] if common else []
    for name, override in overrides.items():
        target = override.sparsity_target
        start = min(first, target) if override.sparsity_init is None else override.sparsity_init
        pools.append(Pool((name,), target if share == 1 else start + share * (target - start)))
    return pools
