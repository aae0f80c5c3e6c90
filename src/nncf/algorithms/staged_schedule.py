# SPDX-License-Identifier: Apache-2.0
"""The staged schedule: weights and activations stay in floating point until their epochs."""

from __future__ import annotations

from typing import Any, Protocol

from nncf.algorithms.staged_options import StagedOptions
from nncf.compression.schedules import Scheduler
from nncf.compression.stage import CompressionStage


class Staged(Protocol):
    """What a controller does for the schedule; ``init_range`` finds what depends on data anew."""

    def switch_weights(self, enabled: bool) -> None: ...

    def switch_activations(self, enabled: bool) -> None: ...

    def init_range(self) -> None: ...


class StagedScheduler(Scheduler):
    """Keeps weights and activations in floating point until their start epochs.

    When an epoch switches something on, ranges are found anew, since training has moved them.
    """

    def __init__(self, controller: Staged, options: StagedOptions) -> None:
        super().__init__()
        self._controller = controller
        self.weights_start = options.weights_quant_start_epoch
        self.activations_start = options.activations_quant_start_epoch
        self._apply()

    def epoch_step(self, next_epoch: int | None = None) -> None:
        before = self._enabled()
        super().epoch_step(next_epoch)
        self._apply()
        newly_on = any(now and not then for now, then in zip(self._enabled(), before, strict=True))
        if newly_on:
            self._controller.init_range()

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._apply()

    def _enabled(self) -> tuple[bool, bool]:
        """Return whether weights and activations are compressed in the current epoch."""
        epoch = max(self.current_epoch, 0)
        return epoch >= self.weights_start, epoch >= self.activations_start

    def _apply(self) -> None:
        weights, activations = self._enabled()
        self._controller.switch_weights(weights)
        self._controller.switch_activations(activations)

    def compression_stage(self) -> CompressionStage:
        return CompressionStage(sum(self._enabled()))
