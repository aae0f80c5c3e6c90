# SPDX-License-Identifier: Apache-2.0
"""Teacher and teaching: a frozen model answers the inputs of the one that trains.

The teacher of a model is the model itself with the weights that it had: they are kept, and put in
their places while it answers. Nothing is copied but weights, so every model can teach.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from nncf.errors import CheckpointError, ModelError
from nncf.tensorflow.records import record_of

Pair = tuple[str, Any, Any]


class Teacher:
    """A frozen model; ``fingerprint`` tells two teachers apart by their weights."""

    cache = None

    def __init__(self, model: Any) -> None:
        self.model = model
        kept = [(v, tf.Variable(v.numpy(), trainable=False)) for v in model.variables]
        self._weights = kept
        digest = hashlib.sha256()
        for variable, value in kept:
            digest.update(f"{variable.path} {variable.dtype} {tuple(variable.shape)};".encode())
            digest.update(np.ascontiguousarray(value.numpy()).tobytes())
        self.fingerprint = digest.hexdigest()

    def __repr__(self) -> str:
        return f"Teacher({self.model.name}, {self.fingerprint[:12]})"

    def __call__(self, inputs: Any) -> Any:
        """Return what the teacher says to a batch, without gradients."""
        weights = [(v, tf.convert_to_tensor(value)) for v, value in self._weights]
        with keras.StatelessScope(weights):
            outputs = self.model(inputs, training=False)
        return tree.map_structure(tf.stop_gradient, outputs)


def make_teacher(model: Any, registered: Any = None) -> Teacher:
    """Return the teacher of a model: itself as it is now, or a registered model.

    Raises ModelError when what was registered is no Keras model.
    """
    if registered is not None and not isinstance(registered, keras.Model):
        raise ModelError(
            f"register_default_init_args: teacher is of type {type(registered).__name__}. Expected "
            "a keras.Model that takes the same inputs as the model."
        )
    return Teacher(model if registered is None else registered)


def example_pairs(model: Any, teacher: Teacher, forward: Callable[[Any], Any]) -> list[Pair] | None:
    """Return the outputs of model and teacher for a sample of zeros; None where there is none.

    Raises ModelError when the teacher cannot take it or its outputs do not match.
    """
    ours = forward(model)
    if ours is None:
        return None
    try:
        theirs = forward(teacher.model)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ModelError(
            f"The teacher ({teacher.model.name}) failed on the inputs of the model: "
            f"{type(error).__name__}: {error}. Register a teacher that takes the same inputs."
        ) from error
    return output_pairs(ours, theirs)


def output_pairs(ours: Any, theirs: Any) -> list[Pair]:
    """Return the outputs of model and teacher side by side, in order; integers are left out.

    Raises ModelError where they do not match.
    """
    one, other = (
        [x for x in tree.flatten(outputs) if x.dtype.is_floating] for outputs in (ours, theirs)
    )
    shapes = [[tuple(x.shape[1:]) for x in outputs] for outputs in (one, other)]
    if shapes[0] != shapes[1] or not one:
        raise ModelError(
            f"The teacher's outputs have the shapes {shapes[1]} without the batch, the model's "
            f"{shapes[0]}. Expected equal outputs: register a teacher with the same classes."
        )
    return [(str(n), a, b) for n, (a, b) in enumerate(zip(one, other, strict=True))]


def fewest_bits(model: Any) -> int | None:
    """Return the smallest number of bits that an op of a compressed model keeps, None for none."""
    found = [getattr(insert.op, "bits", None) for insert in record_of(model).layout]
    return min((bits for bits in found if bits is not None), default=None)


def teach(model: Any, teacher: Teacher, judge: Any, features: Mapping[str, str]) -> Teaching:
    """Compare the training forwards of a compressed model with its teacher from now on."""
    assert not features  # options for PyTorch models only, refused before
    return Teaching(model, teacher, judge)


class Teaching:
    """Notes the loss of each training forward of a model until it is collected.

    ``refusal`` is why training forwards raise an error, if they do.
    """

    def __init__(self, model: Any, teacher: Teacher, judge: Any) -> None:
        self.teacher = teacher
        self.judge = judge
        self.refusal = ""
        self._seen = threading.local()
        self._loss = _number()
        self._agreement = _number()
        called = model.call

        def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            outputs = called(inputs, training=training, mask=mask)
            symbolic = any(isinstance(x, keras.KerasTensor) for x in tree.flatten(inputs))
            if training and not symbolic:
                self._note(inputs, outputs)
            return outputs

        object.__setattr__(model, "call", call)

    def _note(self, inputs: Any, outputs: Any) -> None:
        if self.refusal:
            raise CheckpointError(self.refusal)
        pairs = output_pairs(outputs, self.teacher(inputs))
        loss = self.judge(pairs)
        if loss is None:
            return
        self._loss.assign(loss)
        _, one, other = pairs[0]
        if len(one.shape) == 2:
            same = tf.equal(tf.argmax(one, 1), tf.argmax(other, 1))
            self._agreement.assign(tf.reduce_mean(tf.cast(same, tf.float32)))
        self._losses.append(loss)

    @property
    def _losses(self) -> list[Any]:
        """The losses noted in this thread, for the function that is traced now."""
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        if getattr(self._seen, "graph", self) is not graph:
            self._seen.graph, self._seen.losses = graph, []
        found: list[Any] = self._seen.losses
        return found

    def collect(self) -> Any:
        """Return the mean loss of the forwards since the last call, None where there were none."""
        losses = self._losses
        if not losses:
            return None
        found = tf.add_n(losses) / len(losses)
        losses.clear()
        return found

    def last_seen(self) -> tuple[float | None, float | None]:
        """Return the loss of the last training forward, and the share of equal classes."""
        found = [float(number.numpy()) for number in (self._loss, self._agreement)]
        loss, agreement = (None if np.isnan(value) else value for value in found)
        return loss, agreement


def _number() -> Any:
    """Return a variable for a number that any replica may set."""
    return tf.Variable(
        float("nan"), trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )
