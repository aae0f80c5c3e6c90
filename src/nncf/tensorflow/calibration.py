# SPDX-License-Identifier: Apache-2.0
"""Run a model over some of a data set and leave no trace."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from nncf.errors import DataError
from nncf.resources import NNCFDataLoader

_LOGGER = logging.getLogger("nncf")


@dataclass(frozen=True)
class CalibrationBatch:
    """The inputs in one batch, the target if there is one, and the number of samples."""

    index: int
    inputs: Any
    target: Any
    samples: int


def calibration_batches(
    loader: Iterable[Any], samples: int, model: Any, *, description: str = "Calibration"
) -> Iterator[CalibrationBatch]:
    """Yield batches of a data set until they hold ``samples`` samples.

    A data set with fewer is used up, which is logged. Raises DataError for an empty one, and
    when the inputs of the model cannot be told.
    """
    seen = index = 0
    with same_random_streams():
        for raw in loader:
            inputs, target = split_batch(raw, model, loader=loader)
            count = _batch_size(inputs)
            yield CalibrationBatch(index, inputs, target, count)
            index, seen = index + 1, seen + count
            if seen >= samples:
                return
    if index == 0:
        raise DataError(
            f"{description}: the data set ({type(loader).__name__}) yielded nothing. Expected at "
            "least one batch: check its size; an iterator or generator can be used up only once, "
            "so register a tf.data.Dataset or a list of batches."
        )
    _LOGGER.info(
        "%s: %d samples were asked for, the data set has %d: all of them were used.",
        *(description, samples, seen),
    )


def split_batch(batch: Any, model: Any, *, loader: Any = None) -> tuple[Any, Any]:
    """Return ``(inputs, target)`` of what a data set yields; the target None without one.

    As ``fit`` does it: ``(x, y)`` and ``(x, y, weights)`` are tuples, all else is x. A list of
    as many arrays as the model has inputs is x too. Raises DataError for inputs that do not
    suit the model.
    """
    if isinstance(loader, NNCFDataLoader):
        return batch[0], None
    if isinstance(batch, list) and len(batch) in (2, 3) and len(model.inputs) != len(batch):
        batch = tuple(batch)  # as data loaders of other frameworks give pairs
    x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    expected, found = len(model.inputs), len(tree.flatten(x))
    if expected != found:
        raise DataError(
            f"The data set yields {described(batch)}: {found} arrays as inputs, and the model has "
            f"{expected}. Expected batches as fit() takes them: x, (x, y) or (x, y, weights)."
        )
    return x, y


def described(value: Any) -> str:
    """Return the shapes in a batch, for messages."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {described(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(described(item) for item in value) + ")"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array {tuple(shape)}"


def _batch_size(inputs: Any) -> int:
    first = next(iter(tree.flatten(inputs)), None)
    shape = getattr(first, "shape", ())
    return int(shape[0]) if len(shape) else 1


def run(model: Any, batch: CalibrationBatch, call: Any = None) -> Any:
    """Return what the model makes of a batch, in evaluation. Raises DataError when it fails."""
    try:
        inputs = tree.map_structure(tf.convert_to_tensor, batch.inputs)
        return (call or model)(inputs, training=False)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise DataError(
            f"The model failed on batch {batch.index} of the calibration data "
            f"({described(batch.inputs)}) with {type(error).__name__}: {error}. Expected batches "
            "as fit() takes them."
        ) from error


@contextmanager
def same_random_streams() -> Iterator[None]:
    """Put Python's and NumPy's generators back afterwards: training is as without this."""
    python, state = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global one
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(state)  # noqa: NPY002  # the global one
