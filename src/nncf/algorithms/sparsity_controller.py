# SPDX-License-Identifier: Apache-2.0
"""What the controllers of the sparsity algorithms share: level, freezing, stage and state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nncf.algorithms.sparsity_options import SparsitySchedule
from nncf.algorithms.sparsity_schedulers import SparsityScheduler
from nncf.compression.controller import Controller
from nncf.compression.stage import CompressionStage
from nncf.errors import CheckpointError, LevelError


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
            raise CheckpointError(
                f"The state of '{self.name}' in compression_state is damaged ({error!r}). Expected "
                "the keys sparsity_level and frozen as get_compression_state() wrote them."
            ) from error
        super().load_state(state)


def checked_level(level: float, *, where: str = "sparsity level") -> float:
    """Return a level as a float. Raises LevelError outside of [0, 1)."""
    level = float(level)
    if not 0 <= level < 1:
        raise LevelError(
            f"{where} = {level:g}: expected a number in [0, 1), the share of weights that become "
            "zero. At least one weight has to stay; to remove everything, remove the layer."
        )
    return level
