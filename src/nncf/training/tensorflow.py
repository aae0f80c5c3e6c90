# SPDX-License-Identifier: Apache-2.0
"""What the loops need of Keras: optimizers, random numbers, files, and ``accuracy_aware_fit``."""

from __future__ import annotations

import inspect
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nncf.config import NNCFConfig
from nncf.errors import CheckpointError, TrainingError
from nncf.tensorflow.callbacks.compression import SchedulerCallback
from nncf.training.array_file import read_file, write_file
from nncf.training.loops import create_accuracy_aware_training_loop
from nncf.training.statistics import TrainingLoopStatistics


class Framework:
    """The optimizer of a run, and the state of a model in files.

    ``optimizer`` and ``lr_scheduler`` are what ``configure_optimizers_fn`` returned. A scheduler is
    any object with ``step()``; learning rates of Keras' own schedules need none.
    """

    extension = ".npz"
    is_main = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.optimizer: Any = None
        self.lr_scheduler: Any = None

    # --- optimizers --------------------------------------------------------------------------

    def configure(self, returned: Any, factor: float = 1.0) -> None:
        """Take what ``configure_optimizers_fn`` returned, learning rates times ``factor``."""
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise TrainingError(
                f"configure_optimizers_fn returned {type(returned).__name__}: expected a pair, "
                "(optimizer, lr_scheduler), with None for what there is not."
            )
        optimizer, self.lr_scheduler = returned
        if optimizer is not None and not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TrainingError(
                f"configure_optimizers_fn returned {type(optimizer).__name__} as optimizer: "
                "expected a keras.optimizers.Optimizer or None."
            )
        self.optimizer = optimizer
        if optimizer is None:
            return
        optimizer.build(self.model.trainable_variables)
        if factor != 1.0:
            scale_learning_rate(optimizer, factor)

    def update_learning_rate(self, metric: float) -> None:
        """Let the scheduler take its step; one that takes the metric gets it."""
        step = getattr(self.lr_scheduler, "step", None)
        if step is not None:
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
        return {
            "tensorflow": tf.random.get_global_generator().state.numpy(),
            "numpy": [kind, np.asarray(keys).tolist(), *position],
            "python": [version, list(words), spare],
        }

    def load_rest(self, state: Mapping[str, Any], optimizers: list[Any]) -> None:
        """Take back ``optimizer_state`` and ``rest_of_state``."""
        variables = [] if self.optimizer is None else self.optimizer.variables
        put(variables, optimizers, "the optimizer that configure_optimizers_fn returned")
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

    def summary_writer(self, folder: Path) -> Any:
        """Return a TensorBoard writer, None where that package is absent."""
        try:
            import tensorboard  # noqa: F401  # is it there?
        except ImportError:
            return None
        return SummaryWriter(folder)


class SummaryWriter:
    """TensorFlow's writer of summaries with the methods that the loops call."""

    def __init__(self, folder: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        with self._writer.as_default(step=step):
            tf.summary.scalar(tag, value)

    def close(self) -> None:
        self._writer.close()


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


@keras.saving.register_keras_serializable("nncf")
class Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of learning rates times a factor."""

    def __init__(self, schedule: Any, factor: float) -> None:
        super().__init__()
        self.schedule, self.factor = schedule, factor

    def __call__(self, step: Any) -> Any:
        return self.factor * self.schedule(step)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "factor": self.factor}


def scale_learning_rate(optimizer: Any, factor: float) -> None:
    """Multiply the learning rate of an optimizer, or all rates of its schedule."""
    rate = optimizer._learning_rate  # noqa: SLF001  # a schedule has no public reader
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        optimizer._learning_rate = Scaled(rate, factor)  # noqa: SLF001  # the setter takes numbers
    else:
        optimizer.learning_rate = float(optimizer.learning_rate) * factor


# ------------------------------------------------------------------------------ the way of Keras


class StepCallback(keras.callbacks.Callback):
    """Tells the schedulers when a training step begins; epochs are the loop's."""

    def __init__(self, controller: Any) -> None:
        super().__init__()
        self._controller = controller

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        del batch, logs
        self._controller.scheduler.step()


def accuracy_aware_fit(  # noqa: PLR0913  # the documented signature
    model: Any,
    train_dataset: Any,
    compression_ctrl: Any,
    nncf_config: NNCFConfig | Mapping[str, Any],
    callbacks: Sequence[Any] = (),
    initial_epoch: int = 0,
    uncompressed_model_accuracy: float | None = None,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
    tensorboard_writer: Any = None,
    log_dir: str | Path | None = None,
    validation_data: Any = None,
    validation_steps: int | None = None,
    result_dict_to_val_metric_fn: Callable[[dict[str, float]], float] | None = None,
    *,
    resume: bool = False,
    **loop_options: Any,
) -> TrainingLoopStatistics:
    """Train a compiled, compressed model until its accuracy is good enough; return what came out.

    Runs ``model.fit`` epoch by epoch in the loop that the configuration asks for.

    Args:
        train_dataset, steps_per_epoch, batch_size, callbacks: for ``fit``; the callbacks of
            ``create_compression_callbacks`` may be among them.
        compression_ctrl, nncf_config: what came with the model, and what it was compressed with.
        initial_epoch: the number of the first epoch for ``fit`` and its callbacks.
        uncompressed_model_accuracy: the metric before compression, as validation returns it.
        tensorboard_writer: an object with ``add_scalar(tag, value, step)``; None: one is made.
        log_dir: a folder for each run is made in ``<log_dir>/accuracy_aware_training``.
        validation_data, validation_steps: for ``evaluate``; a data set or a tuple ``(x, y)``.
        result_dict_to_val_metric_fn: returns the metric from what ``evaluate`` returned as a dict;
            None: the first number that is no loss.
        resume, loop_options: see ``run`` and ``create_accuracy_aware_training_loop``.

    Raises TrainingError for a model that is not compiled or cannot be judged, ConfigError without
    such a section.
    """
    _check_fit(model, uncompressed_model_accuracy, validation_data)
    loop = create_accuracy_aware_training_loop(
        nncf_config, compression_ctrl, float(uncompressed_model_accuracy or 0.0), **loop_options
    )
    epochs = _Epochs(
        train={"x": train_dataset, "steps_per_epoch": steps_per_epoch, "batch_size": batch_size},
        judge={"steps": validation_steps, "batch_size": batch_size, **_named(validation_data)},
        callbacks=_without_schedule(callbacks, compression_ctrl),
        initial_epoch=initial_epoch,
        metric_of=result_dict_to_val_metric_fn or _first_metric,
    )
    loop.run(
        model,
        epochs.train_epoch,
        epochs.validate,
        configure_optimizers_fn=_Restarted(model),
        tensorboard_writer=tensorboard_writer,
        log_dir=log_dir,
        resume=resume,
    )
    return loop.statistics


@dataclass
class _Epochs:
    """Trains by ``fit`` and judges by ``evaluate``, with the arguments of each."""

    train: dict[str, Any]
    judge: dict[str, Any]
    callbacks: list[Any]
    initial_epoch: int
    metric_of: Callable[[dict[str, float]], float]

    def train_epoch(self, _controller: Any, model: Any, *, epoch: int) -> float:
        first = self.initial_epoch + epoch
        span = {"initial_epoch": first, "epochs": first + 1}
        history = model.fit(**self.train, **span, callbacks=self.callbacks, verbose=0)
        return float(history.history["loss"][-1])

    def validate(self, model: Any) -> float:
        return float(self.metric_of(model.evaluate(**self.judge, return_dict=True, verbose=0)))


def _named(data: Any) -> dict[str, Any]:
    """Return data for ``evaluate``: a data set, or x, y and weights of a tuple, as for ``fit``."""
    if not isinstance(data, tuple):
        return {"x": data}
    names = ("x", "y", "sample_weight")
    return dict(zip(names, keras.utils.unpack_x_y_sample_weight(data), strict=True))


def _without_schedule(callbacks: Sequence[Any], controller: Any) -> list[Any]:
    """Return callbacks for ``fit``: epochs are the loop's, steps are told all the same."""
    kept = [item for item in callbacks if not isinstance(item, SchedulerCallback)]
    return [*kept, StepCallback(controller)]


def _check_fit(model: Any, accuracy: float | None, validation_data: Any) -> None:
    if not model.compiled:
        raise TrainingError("accuracy_aware_fit trains a compiled model: call model.compile first.")
    if accuracy is None:
        raise TrainingError(
            "accuracy_aware_fit: uncompressed_model_accuracy is missing. Evaluate the model before "
            "compression and pass its metric."
        )
    if validation_data is None:
        raise TrainingError(
            "accuracy_aware_fit: validation_data is missing, by which each epoch is judged."
        )


class _Restarted:
    """Gives the model's optimizer as it was at the start: each rate trains anew from there."""

    def __init__(self, model: Any) -> None:
        self.model = model
        model.optimizer.build(model.trainable_variables)
        self.rate = model.optimizer._learning_rate  # noqa: SLF001  # a schedule has no public reader
        self.start = [np.asarray(v.numpy()) for v in model.optimizer.variables]

    def __call__(self) -> tuple[Any, None]:
        optimizer = self.model.optimizer
        if optimizer._learning_rate is not self.rate:  # noqa: SLF001  # as above
            optimizer._learning_rate = self.rate  # noqa: SLF001  # as above
        put(optimizer.variables, self.start, "the optimizer")
        self.model.train_function = None  # compiled with the former schedule
        return optimizer, None


def _first_metric(results: dict[str, float]) -> float:
    found = [value for name, value in results.items() if not name.endswith("loss")]
    if not found:
        raise TrainingError(
            "evaluate returned only a loss. Compile the model with a metric, or pass "
            "result_dict_to_val_metric_fn."
        )
    return found[0]
