# SPDX-License-Identifier: Apache-2.0
"""``accuracy_aware_fit``: a loop that trains a compiled model by ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nncf.config import NNCFConfig
from nncf.errors import TrainingError
from nncf.training.loops import TrainingLoop, create_accuracy_aware_training_loop
from nncf.training.statistics import TrainingLoopStatistics
from nncf.training.tensorflow.callbacks import RunCallbacks
from nncf.training.tensorflow.epochs import Epochs, TrainingData, named
from nncf.training.tensorflow.framework import build, put
from nncf.training.tensorflow.learning_rates import learning_rate, set_learning_rate


def accuracy_aware_fit(  # noqa: PLR0913  # the documented signature
    model: Any,
    train_dataset: Any,
    compression_ctrl: Any,
    nncf_config: NNCFConfig | Mapping[str, Any],
    callbacks: Sequence[Any] | None = None,
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

    Runs ``model.fit`` epoch by epoch in the loop that the configuration asks for; each epoch begins
    the data set anew. Raises TrainingError for a model that is not compiled or cannot be judged.

    Args:
        train_dataset, steps_per_epoch: for ``fit``; a tuple of arrays is shuffled.
        callbacks: of Keras, with ``val_…`` among their logs; the whole run is one training to them.
            One that sets ``stop_training`` ends it, once the model is fully compressed. Those of
            ``create_compression_callbacks`` may be among them. Their own state is in no file.
        compression_ctrl, nncf_config: what came with the model, and what it was compressed with.
        initial_epoch: the number of the first epoch for ``fit`` and its callbacks.
        uncompressed_model_accuracy: the metric before compression, as validation returns it.
        batch_size: of arrays; 32 by default.
        tensorboard_writer: of ``tf.summary``, or an object with ``add_scalar(tag, value, step)``.
        log_dir: a folder for each run is made in ``<log_dir>/accuracy_aware_training``.
        validation_data, validation_steps: for ``evaluate``; a data set or a tuple ``(x, y)``.
        result_dict_to_val_metric_fn: returns the metric from what ``evaluate`` returned as a dict;
            None: the first number that is no loss; the loss if it is alone and lower is better.
        resume, loop_options: see ``run`` and ``create_accuracy_aware_training_loop``.
    """
    _check(model, uncompressed_model_accuracy, validation_data)
    _check_batch_size(batch_size, train_dataset, validation_data)
    loop = create_accuracy_aware_training_loop(
        nncf_config, compression_ctrl, float(uncompressed_model_accuracy or 0.0), **loop_options
    )
    epochs = Epochs(
        data=TrainingData.of(train_dataset, batch_size, steps_per_epoch),
        judge={"steps": validation_steps, "batch_size": batch_size, **named(validation_data)},
        callbacks=RunCallbacks(callbacks or (), model, compression_ctrl, loop.params),
        initial_epoch=initial_epoch,
        metric_of=result_dict_to_val_metric_fn or _Metric(loop.goal.higher_is_better),
    )
    _run(loop, model, epochs, tensorboard_writer=tensorboard_writer, log_dir=log_dir, resume=resume)
    return loop.statistics


def _run(loop: TrainingLoop, model: Any, epochs: Epochs, **options: Any) -> None:
    model.stop_training = False
    loop.run(
        model,
        epochs.train_epoch,
        epochs.validate,
        configure_optimizers_fn=_Restarted(model),
        early_stopping_fn=lambda _metric: model.stop_training,
        **options,
    )
    epochs.callbacks.end(model)


def _check(model: Any, accuracy: float | None, validation_data: Any) -> None:
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


def _check_batch_size(batch_size: int | None, *data: Any) -> None:
    if batch_size is not None and not all(isinstance(item, tuple) for item in data):
        raise TrainingError(
            f"accuracy_aware_fit: batch_size = {batch_size} is for tuples of arrays; a data set has "
            "batches of its own. Leave batch_size out, or pass arrays to train on and to validate on."
        )


class _Restarted:
    """Gives the model's optimizer as it was at the start: each rate trains anew from there."""

    def __init__(self, model: Any) -> None:
        self.model = model
        build(model.optimizer, model)
        self.rate = learning_rate(model.optimizer)
        self.start = [np.asarray(v.numpy()) for v in model.optimizer.variables]

    def __call__(self) -> tuple[Any, None]:
        optimizer = self.model.optimizer
        if learning_rate(optimizer) is not self.rate:
            set_learning_rate(optimizer, self.rate)
        put(optimizer.variables, self.start, "the optimizer")
        self.model.train_function = None  # compiled with the former schedule
        return optimizer, None


class _Metric:
    """Finds the metric in what ``evaluate`` returned."""

    def __init__(self, higher_is_better: bool) -> None:
        self._names = ["loss"] if not higher_is_better else []

    def __call__(self, results: dict[str, float]) -> float:
        found = [name for name in results if not name.endswith("loss")] or self._names
        if not found:
            raise TrainingError(
                "evaluate returned only a loss. Compile the model with a metric, or pass "
                "result_dict_to_val_metric_fn."
            )
        return results[found[0]]
