# SPDX-License-Identifier: Apache-2.0
"""Callbacks that drive compression while ``fit`` runs, and write its statistics."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from nncf.compression.statistics import prepare_for_tensorboard
from nncf.errors import ConfigError, MissingDependency

_LOGGER = logging.getLogger("nncf")


class SchedulerCallback(keras.callbacks.Callback):
    """Tells the schedulers of a controller when an epoch and when a training step begins.

    With ``fit(initial_epoch=n)`` the schedule goes on at epoch n.
    """

    def __init__(self, controller: Any) -> None:
        super().__init__()
        self._controller = controller

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self._controller.scheduler.epoch_step(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del batch, logs
        self._controller.scheduler.step()


class StatisticsCallback(keras.callbacks.Callback):
    """Writes statistics when training begins and after each epoch.

    As tables to the log (``log_text``) and as numbers to TensorBoard in ``log_dir``
    (``compression/statistics/…``).
    """

    def __init__(self, controller: Any, *, log_text: bool, log_dir: Path | None) -> None:
        super().__init__()
        self._controller = controller
        self._log_text = log_text
        self._log_dir = log_dir
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        del logs
        if self._log_dir is not None:
            self._writer = tf.summary.create_file_writer(str(self._log_dir / "compression"))
        self._write(self.model.optimizer.iterations)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        del epoch, logs
        self._write(self.model.optimizer.iterations)

    def on_train_end(self, logs: Any = None) -> None:
        del logs
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: Any) -> None:
        statistics = self._controller.statistics()
        if self._log_text:
            _LOGGER.info("%s", statistics.to_str())
        if self._writer is None:
            return
        with self._writer.as_default(step=int(step)):
            for tag, value in prepare_for_tensorboard(statistics).items():
                tf.summary.scalar(f"compression/statistics/{tag}", value)


def create_compression_callbacks(
    compression_ctrl: Any,
    log_tensorboard: bool = True,
    log_text: bool = True,
    log_dir: str | Path | None = None,
) -> list[keras.callbacks.Callback]:
    """Return the callbacks for ``fit`` that drive compression and write its statistics.

    Args:
        compression_ctrl: the controller that ``create_compressed_model`` returned.
        log_tensorboard: write the numbers of the algorithms to TensorBoard.
        log_text: write the tables to the log.
        log_dir: the folder for TensorBoard.

    Raises:
        ConfigError: ``log_tensorboard`` without ``log_dir``.
        MissingDependency: ``log_tensorboard`` without the package tensorboard.
    """
    if log_tensorboard and log_dir is None:
        raise ConfigError(
            "create_compression_callbacks: log_dir says where TensorBoard's files go, and is "
            "missing. Pass log_dir, or log_tensorboard=False."
        )
    if log_tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MissingDependency("tensorboard", "tf", "writing statistics for TensorBoard")
    callbacks: list[keras.callbacks.Callback] = [SchedulerCallback(compression_ctrl)]
    if log_tensorboard or log_text:
        folder = Path(log_dir) if log_tensorboard and log_dir is not None else None
        callbacks.append(StatisticsCallback(compression_ctrl, log_text=log_text, log_dir=folder))
    return callbacks
