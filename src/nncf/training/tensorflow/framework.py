# SPDX-License-Identifier: Apache-2.0
"""What the loops need of Keras: optimizers, random numbers, files."""

from __future__ import annotations

import inspect
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator

from nncf.errors import CheckpointError, TrainingError
from nncf.training.array_file import read_file, write_file
from nncf.training.tensorflow.learning_rates import has_schedule, scale_learning_rate


class Framework:
    """The optimizer of a run, and the state of a model in files.

    ``optimizer`` and ``lr_scheduler`` are what ``configure_optimizers_fn`` returned. A scheduler is
    any object with ``step()``, or ``step(metric)``, and for runs that go on ``state_dict()`` and
    ``load_state_dict()``; learning rates of Keras' own schedules need none. The state of TensorFlow's
    own random operations without a generator is in no file: use those of Keras, or a
    ``tf.random.Generator``.
    """

    extension = ".npz"
    is_main = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        self._factor = 1.0

    # --- optimizers --------------------------------------------------------------------------

    def configure(self, returned: Any, factor: float = 1.0) -> None:
        """Take what ``configure_optimizers_fn`` returned, learning rates times ``factor``."""
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise TrainingError(
                f"configure_optimizers_fn returned {type(returned).__name__}: expected a pair, "
                "(optimizer, lr_scheduler), with None for what there is not."
            )
        optimizer, scheduler = returned
        if optimizer is not None and not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TrainingError(
                f"configure_optimizers_fn returned {type(optimizer).__name__} as optimizer: "
                "expected a keras.optimizers.Optimizer or None."
            )
        if scheduler is not None and not callable(getattr(scheduler, "step", None)):
            raise TrainingError(
                f"configure_optimizers_fn returned {type(scheduler).__name__} as lr_scheduler: "
                "expected an object with step(), or None. Give a schedule of Keras to the optimizer, "
                "and a callback to accuracy_aware_fit."
            )
        self.optimizer, self.lr_scheduler, self._factor = optimizer, scheduler, factor
        if optimizer is not None:
            build(optimizer, self.model)
            scale_learning_rate(optimizer, factor)

    def update_learning_rate(self, metric: float) -> None:
        """Let the scheduler take its step; one that takes the metric gets it."""
        if self.lr_scheduler is not None:
            step = self.lr_scheduler.step
            step(*[metric][: len(inspect.signature(step).parameters)])

    # --- state -------------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        variables = self.model.variables
        return {
            "paths": [v.path for v in variables],
            "values": [np.asarray(v.numpy()) for v in variables],
        }

    def load_weights(self, state: Mapping[str, Any]) -> None:
        put(self.model.variables, state["values"], "the model")

    def optimizer_state(self) -> list[Any]:
        return (
            []
            if self.optimizer is None
            else [np.asarray(v.numpy()) for v in self.optimizer.variables]
        )

    def rest_of_state(self) -> dict[str, Any]:
        """Return what an exact continuation needs beside weights and optimizer."""
        kind, keys, *position = np.random.get_state()  # noqa: NPY002  # the user's data may use it
        version, words, spare = random.getstate()
        save = getattr(self.lr_scheduler, "state_dict", None)
        return {
            "factor": self._factor,
            "lr_scheduler": None if save is None else save(),
            "keras": global_seed_generator().state.numpy(),
            "tensorflow": tf.random.get_global_generator().state.numpy(),
            "numpy": [kind, np.asarray(keys).tolist(), *position],
            "python": [version, list(words), spare],
        }

    def load_rest(self, state: Mapping[str, Any], optimizers: list[Any]) -> None:
        """Take back ``optimizer_state`` and ``rest_of_state``."""
        variables = [] if self.optimizer is None else self.optimizer.variables
        put(variables, optimizers, "the optimizer that configure_optimizers_fn returned")
        if self.optimizer is not None and has_schedule(self.optimizer):  # others are variables
            scale_learning_rate(self.optimizer, state["factor"] / self._factor)
            self._factor = state["factor"]
        if state["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        global_seed_generator().state.assign(state["keras"])
        tf.random.get_global_generator().reset(state["tensorflow"])
        kind, keys, *position = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *position))  # noqa: NPY002  # as above
        version, words, spare = state["python"]
        random.setstate((version, tuple(words), spare))

    # --- files and processes -----------------------------------------------------------------

    def agreed(self, value: Any) -> Any:
        """Return the value: strategies of TensorFlow have one process that decides."""
        return value

    def write(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a file, whole or not at all."""
        write_file(path, state)

    def read(self, path: Path) -> dict[str, Any]:
        """Return what ``write`` wrote. Raises CheckpointError for anything else."""
        try:
            return read_file(path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}. Expected a file that an accuracy-aware run wrote; "
                "start anew with resume=False."
            ) from error

    def writer(self, given: Any) -> Any:
        """Return a user's writer of summaries, TensorFlow's own too, as one with ``add_scalar``."""
        if hasattr(given, "add_scalar"):
            return given
        if isinstance(given, tf.summary.SummaryWriter):
            return SummaryWriter(given)
        raise TrainingError(
            f"tensorboard_writer is {type(given).__name__}: expected a writer of tf.summary, an object "
            "with add_scalar(tag, value, step), or None."
        )

    def summary_writer(self, folder: Path) -> Any:
        """Return a TensorBoard writer, None where that package is absent."""
        try:
            import tensorboard  # noqa: F401  # is it there?
        except ImportError:
            return None
        return SummaryWriter(tf.summary.create_file_writer(str(folder)))


class SummaryWriter:
    """TensorFlow's writer of summaries with the methods that the loops call."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        with self._writer.as_default(step=step):
            tf.summary.scalar(tag, value)

    def close(self) -> None:
        self._writer.close()


def build(optimizer: Any, model: Any) -> None:
    """Make the variables of an optimizer, where those of the model are."""
    with model.distribute_strategy.scope():
        optimizer.build(model.trainable_variables)


def put(variables: Sequence[Any], values: Sequence[Any], whose: str) -> None:
    """Assign values to variables. Raises CheckpointError, before any is changed, if they differ."""
    shapes = [[tuple(x.shape) for x in items] for items in (variables, values)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"The run was saved with {len(values)} variables of {whose}, which do not fit the "
            f"{len(variables)} that there are now. Go on with the model, the configuration and the "
            "optimizer that the run began with."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
