# SPDX-License-Identifier: Apache-2.0
"""The controller of knowledge distillation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from nncf.algorithms.knowledge_distillation.statistics import KnowledgeDistillationStatistics
from nncf.compression.controller import Controller
from nncf.compression.schedules import Scheduler
from nncf.compression.stage import CompressionStage
from nncf.compression.statistics import Statistics
from nncf.errors import CheckpointError

_LOGGER = logging.getLogger("nncf")


class KnowledgeDistillationController(Controller):
    """Gives the loss of the training forwards, and knows who the teacher was."""

    name = "knowledge_distillation"

    def __init__(self, teaching: Any) -> None:
        super().__init__()
        self.teaching = teaching
        self._teacher = teaching.teacher
        self._fingerprint: str = teaching.teacher.fingerprint
        if teaching.teacher.cache is not None:
            self.scheduler = CacheScheduler(teaching.teacher.cache)

    def loss(self) -> Any:
        """Return the mean distillation loss of the training forwards since the last call.

        0.0 where there were none: each forward counts once.
        """
        loss = self.teaching.collect()
        return 0.0 if loss is None else loss

    def compression_stage(self) -> CompressionStage:
        return CompressionStage.FULLY_COMPRESSED

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:  # noqa: ARG002  # all are quick
        loss, agreement = self.teaching.last_seen()
        cache = self._teacher.cache
        found = KnowledgeDistillationStatistics(
            str(self._teacher), loss, agreement, "" if cache is None else str(cache)
        )
        return Statistics(knowledge_distillation=found)

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "teacher": self._fingerprint}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back the state; with another teacher than then, training forwards are refused."""
        super().load_state(state)
        if "teacher" not in state:
            raise CheckpointError(
                "The state of 'knowledge_distillation' in compression_state does not say who the "
                "teacher was. Expected the key teacher as get_compression_state() wrote it."
            )
        self._fingerprint = str(state["teacher"])
        self.teaching.refusal = ""
        if self._fingerprint != self._teacher.fingerprint:
            self.teaching.refusal = (
                "The teacher is another one than before the checkpoint: it has the weights of the "
                "model that was passed to create_compressed_model. Pass the original model with "
                "its original weights, or register it: register_default_init_args(…, "
                "teacher=original); then load the checkpoint."
            )
            _LOGGER.warning(
                "%s Evaluation and export need no teacher; a training forward is refused.",
                self.teaching.refusal,
            )


class CacheScheduler(Scheduler):
    """Tells the cache of the teacher's answers when an epoch begins."""

    def __init__(self, cache: Any) -> None:
        super().__init__()
        self._cache = cache

    def epoch_step(self, next_epoch: int | None = None) -> None:
        super().epoch_step(next_epoch)
        self._cache.begin_epoch()
