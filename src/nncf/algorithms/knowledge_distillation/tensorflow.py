# SPDX-License-Identifier: Apache-2.0
"""The losses of distillation in TensorFlow; the formulas are those of the file for PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

Pair = tuple[str, Any, Any]

EPSILON = 1e-12


@dataclass(frozen=True)
class Judge:
    """Turns the pairs of one forward into its loss; there are no features for Keras models."""

    type: str
    scale: float
    temperature: float
    gradient_limit: float | None
    features: dict[str, tuple[str, float]]

    def __call__(self, outputs: Sequence[Pair]) -> Any:
        """Return the sum over all pairs that take part, None if there is none."""
        terms = [self._output_loss(one, other) for _, one, other in outputs if self.suits(one)]
        return tf.add_n(terms) if terms else None

    def suits(self, student: Any) -> bool:
        """Tell whether an output takes part: mse needs two axes or more, softmax just two."""
        rank = len(student.shape)
        return rank == 2 if self.type == "softmax" else rank >= 2

    def _output_loss(self, student: Any, teacher: Any) -> Any:
        if self.type == "mse":
            return self.scale * mse_loss(student, teacher)
        loss = softmax_loss(
            student,
            teacher,
            temperature=self.temperature,
            gradient_limit=self.gradient_limit,
        )
        return self.scale * loss


def mse_loss(student: Any, teacher: Any) -> Any:
    """Return mean (teacher − student)², in float32."""
    return tf.reduce_mean(tf.square(_wide(student) - _wide(teacher)))


def softmax_loss(
    student: Any,
    teacher: Any,
    *,
    temperature: float = 1.0,
    gradient_limit: float | None = None,
) -> Any:
    """Return T² · cross-entropy of softmax(student / T) against softmax(teacher / T).

    Both are scores [batch, classes]. With ``gradient_limit`` the gradient by the scores is
    shortened, for the whole batch alike, to that multiple of the length that it has at T = 1.
    """
    student, teacher = _wide(student), tf.stop_gradient(_wide(teacher))
    target = tf.nn.softmax(teacher / temperature)
    if gradient_limit is not None:
        fixed = tf.stop_gradient(student)
        share = gradient_limit * _length(fixed, teacher, 1.0)
        share = tf.minimum(share / tf.maximum(_length(fixed, teacher, temperature), EPSILON), 1.0)
        student = fixed + share * (student - fixed)
    scores = tf.nn.log_softmax(student / temperature)
    return -tf.reduce_mean(tf.reduce_sum(target * scores, 1)) * temperature**2


def _length(student: Any, teacher: Any, temperature: float) -> Any:
    """Return the length of the gradient by the scores of a batch, times its size."""
    one, other = (tf.nn.softmax(x / temperature) for x in (student, teacher))
    return temperature * tf.norm(one - other)


def _wide(tensor: Any) -> Any:
    return tf.cast(tensor, tf.float32)
