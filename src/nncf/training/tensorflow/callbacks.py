# SPDX-License-Identifier: Apache-2.0
"""The callbacks of a run that calls ``fit`` for each epoch, and is one training to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from nncf.tensorflow.callbacks.compression import SchedulerCallback


class StepCallback(keras.callbacks.Callback):
    """Tells the schedulers when a training step begins; epochs are the loop's."""

    def __init__(self, controller: Any) -> None:
        super().__init__()
        self._controller = controller

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del batch, logs
        self._controller.scheduler.step()


class RunCallbacks(keras.callbacks.CallbackList):
    """Callbacks for many calls of ``fit``: training begins with the first and ends with ``end``.

    What counts epochs without progress, or draws a curve, would begin anew with every call else.
    ``SchedulerCallback`` is left out, as the loop steps the schedules' epochs.
    """

    def __init__(self, callbacks: Sequence[Any], model: Any, controller: Any, params: Any) -> None:
        given = [c for c in tree.flatten(list(callbacks)) if not isinstance(c, SchedulerCallback)]
        super().__init__(
            [*given, StepCallback(controller)],
            add_history=True,
            model=model,
            epochs=params.maximal_total_epochs,
            steps=None,
            verbose=0,
        )
        self.is_watched = bool(given)
        self._judged: tuple[dict[str, float], list[Any]] | None = None
        self._began = False
        self._last_logs: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        if not self._began:
            self._began = True
            super().on_train_begin(logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Wait for ``end``: the next epoch is another call of ``fit``."""
        self._last_logs = logs

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        found = {
            name.removeprefix("val_"): float(value)
            for name, value in (logs or {}).items()
            if name.startswith("val_")
        }
        self._judged = (found, _values(self.model)) if found else None
        super().on_epoch_end(epoch, logs)

    def judged(self) -> dict[str, float] | None:
        """Return what ``fit`` found on the data to validate on, unless weights have changed since.

        Callbacks may change them at the end of an epoch, as do optimizers that keep averages.
        """
        found, self._judged = self._judged, None
        if found is None:
            return None
        pairs = zip(found[1], _values(self.model), strict=True)
        return found[0] if all(np.array_equal(a, b) for a, b in pairs) else None

    def end(self, model: Any) -> None:
        """End the training; the model stays as the loop has left it, whatever callbacks bring back."""
        if not self._began:
            return
        before = _values(model)
        super().on_train_end(self._last_logs)
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)


def _values(model: Any) -> list[Any]:
    return [np.asarray(v.numpy()) for v in model.variables]
