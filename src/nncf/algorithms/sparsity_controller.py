# SPDX-License-Identifier: Apache-2.0
"""What the controllers of the sparsity algorithms share: level, freezing, stage and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from nncf.algorithms.sparsity_options import SparsitySchedule
from nncf.algorithms.sparsity_schedulers import SparsityScheduler
from nncf.algorithms.sparsity_statistics import SparsifiedModelStatistics, Zeros, collect
from nncf.algorithms.weight_placement import inserts_at
from nncf.compression.algorithm import Compressed
from nncf.compression.controller import Controller
from nncf.compression.layout import Layout
from nncf.compression.stage import CompressionStage
from nncf.errors import CheckpointError, LevelError, ScopeNotFound
from nncf.graph.scopes import Scopes


class SparsityController(Controller):
    """Holds the level that was set last and whether the masks are frozen.

    A subclass defines ``set_sparsity_level``, beginning with ``checked_level``, and makes its
    scheduler with ``sparsity_schedulers.make_scheduler``.
    """

    def __init__(self, params: SparsitySchedule, initial_level: float) -> None:
        super().__init__()
        self.params = params
        self.sparsity_level = initial_level
        self.frozen = False

    @property
    def is_local(self) -> bool:
        """Whether the training script sets the level of each layer, without a schedule."""
        return self.params.sparsity_level_setting_mode == "local"

    @property
    def level(self) -> float:
        return self.sparsity_level

    def freeze(self, freeze: bool = True) -> None:
        """Keep the masks as they are from now on, or with False let them change again."""
        self.frozen = freeze

    def compression_stage(self) -> CompressionStage:
        """Compare the level with the schedule's target; without a schedule all is done."""
        if not isinstance(self.scheduler, SparsityScheduler):
            return CompressionStage.FULLY_COMPRESSED
        if self.sparsity_level >= self.scheduler.target_level:
            return CompressionStage.FULLY_COMPRESSED
        if self.sparsity_level == 0:
            return CompressionStage.UNCOMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED

    def get_state(self) -> dict[str, Any]:
        own = {"sparsity_level": self.sparsity_level, "frozen": self.frozen}
        return {**super().get_state(), **own}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back level and freeze; the masks come with the state dict of the model."""
        try:
            self.sparsity_level = float(state["sparsity_level"])
            self.frozen = bool(state["frozen"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.name, "sparsity_level and frozen", error) from error
        super().load_state(state)


def damaged(name: str, keys: str, error: Exception) -> CheckpointError:
    """Return the error for a controller's state that lacks what it should hold."""
    return CheckpointError(
        f"The state of '{name}' in compression_state is damaged ({error!r}). Expected the keys "
        f"{keys} as get_compression_state() wrote them."
    )


def checked_level(level: float, *, maximum: float = 1.0, limit: str = "") -> float:
    """Return a level as a float.

    Raises LevelError outside of [0, 1) and beyond ``maximum``, which ``limit`` explains.
    """
    level = float(level)
    if not 0 <= level < 1:
        raise LevelError(
            f"sparsity level = {level:g}: expected a number in [0, 1), the share of weights that "
            "become zero. Some weight has to stay; to remove everything, remove the layer."
        )
    if level > maximum:
        raise LevelError(
            f"sparsity level = {level:g} is out of reach: the maximum is {maximum:g}{limit}."
        )
    return level


def masks_at(compressed: Compressed, target: str | Sequence[str]) -> list[str]:
    """Return the names of the masks in the layers that a scope, or several, match.

    Raises ScopeNotFound when a scope matches nothing, and when nothing that matches has a mask.
    """
    scopes = [target] if isinstance(target, str) else list(target)
    layout = compressed.layout
    keys = Scopes(compressed.graph).match(scopes, where="set_sparsity_level: target")
    found = inserts_at(layout, keys)
    if not found:
        raise ScopeNotFound(
            f"set_sparsity_level: target {scopes} matches operations, but none whose weight is "
            f"made sparse. Expected the scope of one of: {', '.join(layer_names(layout))}."
        )
    return found


def layer_names(layout: Layout) -> list[str]:
    """Return the address of the first operation of each mask, for readers."""
    return [insert.points[0].address for insert in layout]


def model_statistics(
    compressed: Compressed, parameters: Mapping[str, str]
) -> SparsifiedModelStatistics:
    """Count the zeros of a model with masks; ``parameters`` are those masked, by Insert name.

    A mask's op has ``zeros(weight)``, the number of zeros of the weight behind the mask.
    """
    counts = compressed.backend.zero_counts(compressed.model)
    layers = zip(layer_names(compressed.layout), parameters.items(), strict=True)
    masked = [
        Zeros(
            layer,
            counts[own][0],
            int(compressed.ops[name].zeros(compressed.parameter(own))),
        )
        for layer, (name, own) in layers
    ]
    others = [Zeros(n, *counts[n]) for n in counts if n not in set(parameters.values())]
    return collect(masked, others)


def mean_level(levels: Mapping[str, float], layout: Layout) -> float:
    """Return the level of several layers together, 0 of none; ``levels`` are by Insert name."""
    sizes = {insert.name: prod(insert.shape) for insert in layout}
    total = sum(sizes.values())
    return sum(levels[name] * size for name, size in sizes.items()) / total if total else 0.0
