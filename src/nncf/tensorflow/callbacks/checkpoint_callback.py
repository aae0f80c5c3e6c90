# SPDX-License-Identifier: Apache-2.0
"""A callback that saves a ``tf.train.Checkpoint`` while ``fit`` runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import keras
import tensorflow as tf

from nncf.errors import ConfigError

_LOGGER = logging.getLogger("nncf")


class CheckpointManagerCallback(keras.callbacks.Callback):
    """Saves a ``tf.train.Checkpoint`` after each epoch, or after every ``save_freq`` batches.

    ``checkpoint`` holds the model, the compression state and whatever else training needs
    (``tf.train.Checkpoint(model=…, compression_state=TFCompressionState(ctrl))``); ``directory``
    is where a ``tf.train.CheckpointManager`` keeps the files, all of them unless ``max_to_keep``
    says how many. Raises ConfigError for another ``save_freq``.
    """

    def __init__(
        self,
        checkpoint: tf.train.Checkpoint,
        directory: str | Path,
        save_freq: Literal["epoch"] | int = "epoch",
        *,
        max_to_keep: int | None = None,
    ) -> None:
        super().__init__()
        is_count = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
        if save_freq != "epoch" and not is_count:
            raise ConfigError(
                f'CheckpointManagerCallback: save_freq = {save_freq!r}: expected "epoch" or a number '
                "of batches above zero."
            )
        self.save_freq = save_freq
        self._batches = 0
        self._manager = tf.train.CheckpointManager(checkpoint, str(directory), max_to_keep)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del batch, logs
        self._batches += 1
        if self.save_freq != "epoch" and self._batches % self.save_freq == 0:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        del epoch, logs
        if self.save_freq == "epoch":
            self._save()

    def _save(self) -> None:
        _LOGGER.info("The checkpoint is saved in %s", self._manager.save())
