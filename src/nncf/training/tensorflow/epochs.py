# SPDX-License-Identifier: Apache-2.0
"""One epoch of a run: trained by ``fit``, judged by ``evaluate``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from nncf.training.tensorflow.callbacks import RunCallbacks

_BATCH = 32
"""What ``fit`` takes by default."""


@dataclass
class TrainingData:
    """A data set, and how often it has been begun: each time it is shuffled anew."""

    dataset: Any
    steps_per_epoch: int | None
    begun: int = 0

    @classmethod
    def of(cls, data: Any, batch_size: int | None, steps_per_epoch: int | None) -> TrainingData:
        """Return data as a data set; arrays of a tuple are shuffled, as ``fit`` does it."""
        if isinstance(data, tuple):
            # by fit itself, one epoch at a time, a seed would give the same order each time
            data = tf.data.Dataset.from_tensor_slices(tuple(_structure(item) for item in data))
            data = data.shuffle(int(data.cardinality())).batch(batch_size or _BATCH)
        return cls(data, steps_per_epoch)

    def begin(self, epoch: int, model: Any) -> None:
        """Bring the order of a ``tf.data.Dataset`` to that of an epoch, in a run that goes on.

        A data set shuffles itself anew whenever an iterator of it is made. One that repeats itself
        inside has no such order that could be brought back.
        """
        if isinstance(self.dataset, tf.data.Dataset):
            for _ in range((epoch - self.begun) * self._iterators(model)):
                iter(self.dataset)
        self.begun = epoch + 1

    def _iterators(self, model: Any) -> int:
        """Return how many iterators ``fit`` makes in an epoch: where data ends it makes the next."""
        size = int(self.dataset.cardinality())
        together = model.steps_per_execution
        seen = math.ceil((self.steps_per_epoch or size) / together) * together
        # in a strategy of its own the model looks at a batch before
        is_distributed = model._distribute_strategy is not None  # noqa: SLF001  # no public reader
        return 1 + (0 < size <= seen) + is_distributed


def _structure(item: Any) -> Any:
    """Return arrays in the structure that data sets take: several inputs are a tuple there."""
    return tuple(item) if isinstance(item, list) else item


@dataclass
class Epochs:
    """Trains by ``fit`` and judges by ``evaluate``, with the arguments of each."""

    data: TrainingData
    judge: dict[str, Any]
    callbacks: RunCallbacks
    initial_epoch: int
    metric_of: Callable[[dict[str, float]], Any]

    def train_epoch(self, _controller: Any, model: Any, *, epoch: int) -> Any:
        self.data.begin(epoch, model)
        first = self.initial_epoch + epoch
        validated = {
            "validation_data": _packed(self.judge),
            "validation_steps": self.judge["steps"],
            "validation_batch_size": self.judge["batch_size"],
        }
        history = model.fit(
            self.data.dataset,
            steps_per_epoch=self.data.steps_per_epoch,
            initial_epoch=first,
            epochs=first + 1,
            callbacks=self.callbacks,
            shuffle=not isinstance(self.data.dataset, tf.data.Dataset),
            verbose=0,
            **(validated if self.callbacks.is_watched else {}),
        )
        return history.history.get("loss", [None])[-1]

    def validate(self, model: Any) -> Any:
        found = self.callbacks.judged()
        if found is None:
            found = model.evaluate(**self.judge, return_dict=True, verbose=0)
        return self.metric_of(found)


def named(data: Any) -> dict[str, Any]:
    """Return data for ``evaluate``: a data set, or x, y and weights of a tuple, as for ``fit``."""
    if not isinstance(data, tuple):
        return {"x": data}
    names = ("x", "y", "sample_weight")
    return dict(zip(names, keras.utils.unpack_x_y_sample_weight(data), strict=True))


def _packed(judge: dict[str, Any]) -> Any:
    """Return what ``named`` took apart, as ``fit`` takes it."""
    if "y" not in judge:
        return judge["x"]
    return keras.utils.pack_x_y_sample_weight(judge["x"], judge["y"], judge["sample_weight"])
