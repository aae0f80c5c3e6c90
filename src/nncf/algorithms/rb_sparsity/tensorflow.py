# SPDX-License-Identifier: Apache-2.0
"""The learned mask as a Keras layer: drawn at random in training, fixed in evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nncf.algorithms.rb_sparsity.mask import LearnedMask, pull
from nncf.algorithms.tensorflow.weight_mask import WeightMask
from nncf.compression.layout import Insert

KEPT_AT_FIRST = 0.99
"""Probability with which a new mask keeps a weight."""


def loss(masks: Sequence[LearnedWeightMask], sizes: Sequence[int], *, is_local: bool) -> Any:
    """Return what pulls masks to their levels, 0 once they are frozen, in compiled steps too."""
    kept = [mask.kept_count() for mask in masks]
    found = pull(kept, sizes, [tf.convert_to_tensor(mask.aim) for mask in masks], is_local)
    return tf.where(tf.convert_to_tensor(masks[0].holds), tf.zeros_like(found), found)


def make_op(insert: Insert, name: str) -> LearnedWeightMask:
    """Return the running op of one Insert whose description is a LearnedMask."""
    assert isinstance(insert.op, LearnedMask)
    return LearnedWeightMask(insert.op, insert.shape, name=name)


@keras.saving.register_keras_serializable("nncf")
class LearnedWeightMask(WeightMask):
    """Keeps each weight with the probability ``sigmoid(logits)``, which is trained.

    In training the mask is ``logits + logit(u) > 0`` with ``u`` from U(0, 1), in evaluation
    ``logits > 0``; backward, the step is taken for a sigmoid. ``u`` is a function of the variable
    ``key``, which counts the calls in training, and of the weight's place. ``aim`` is the level
    that the loss pulls to, ``holds`` whether ``mask`` holds for good: variables, so that what is
    compiled follows them.
    """

    def __init__(
        self, description: LearnedMask | dict[str, Any], shape: tuple[int, ...], **kwargs: Any
    ) -> None:
        super().__init__(shape, **kwargs)
        is_state = isinstance(description, dict)
        self.description = LearnedMask.from_state(description) if is_state else description
        start = math.log(KEPT_AT_FIRST / (1 - KEPT_AT_FIRST))
        self.logits = self.add_weight(
            shape=self.weight_shape, initializer=keras.initializers.Constant(start), name="logits"
        )
        fixed = {"shape": (), "initializer": "zeros", "trainable": False}
        self.aim = self.add_weight(**fixed, name="aim")
        self.holds = self.add_weight(**{**fixed, "dtype": "bool"}, name="holds")
        self.key = self.add_weight(
            shape=(2,), dtype="int32", initializer="zeros", trainable=False, name="key",
            aggregation="only_first_replica",
        )  # fmt: skip
        self.key.assign([_first_key(self.name), 0])

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the weight with a mask drawn in training, with that of evaluation otherwise."""
        if self.observer is not None:
            self.observer(inputs)
            return inputs
        noise = tf.zeros(self.weight_shape)
        if training:
            key = tf.identity(tf.convert_to_tensor(self.key))
            drawn = tf.random.stateless_uniform(self.weight_shape, key, 1e-7, 1 - 1e-7)
            noise = tf.math.log(drawn) - tf.math.log1p(-drawn)
            self.key.assign(key + tf.constant([0, 1], tf.int32))
        weight = tf.cast(inputs, tf.float32)
        learned = _masked(weight, tf.convert_to_tensor(self.logits), noise, self._multiplier)
        found = tf.where(tf.convert_to_tensor(self.holds), super().compress(weight), learned)
        return tf.cast(found, inputs.dtype)

    def compress(self, x: Any) -> Any:
        return tf.where(self.kept(), x, tf.zeros_like(x))

    @property
    def _multiplier(self) -> float:
        multiplier = self.description.lr_multiplier
        return 1.0 if multiplier is None else multiplier

    @property
    def frozen(self) -> bool:
        """Whether ``mask`` holds for good."""
        return bool(self.holds.numpy())

    @property
    def level(self) -> float:
        """The level that the loss aims at."""
        return float(self.aim.numpy())

    @level.setter
    def level(self, value: float) -> None:
        self.aim.assign(value)

    def kept(self) -> NDArray[np.bool_]:
        """Return what stays in evaluation, as bools."""
        return super().kept() if self.frozen else np.asarray(self.logits.numpy() > 0)

    def kept_count(self) -> Any:
        """Return how many weights stay in evaluation, as a float32 number with a gradient."""
        return _count(tf.convert_to_tensor(self.logits), self._multiplier)

    def freeze(self, freeze: bool) -> None:
        """Keep the mask of evaluation from now on, or with False go on learning from the logits."""
        if freeze and not self.frozen:
            self.keep(self.kept())
        self.holds.assign(freeze)

    def probability_sum(self) -> float:
        """Return the sum over all weights of the probability to be kept."""
        if self.frozen:
            return float(np.count_nonzero(self.kept()))
        return float(np.sum(1 / (1 + np.exp(-self.logits.numpy().astype(np.float64)))))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "description": self.description.to_state()}


def _first_key(name: str) -> int:
    """Return the first key of an op: it follows from ``keras.utils.set_random_seed`` and its name."""
    text = f"{keras.config.floatx()} {_global_seed()} {name}".encode()
    digest = hashlib.blake2b(text, digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def _global_seed() -> int | None:
    from tensorflow.python.framework import random_seed  # the seed of tf.random.set_seed

    found: int | None = random_seed.get_seed(0)[0]
    return found


def _slope(noisy: Any) -> Any:
    kept = tf.sigmoid(noisy)
    return kept * (1 - kept)


def _masked(weight: Any, logits: Any, noise: Any, multiplier: float) -> Any:
    @tf.custom_gradient
    def masked(weight: Any, logits: Any) -> Any:
        noisy = logits + noise
        kept = noisy > 0

        def gradient(upstream: Any) -> Any:
            to_weight = tf.where(kept, upstream, tf.zeros_like(upstream))
            return to_weight, _slope(noisy) * upstream * weight * multiplier

        return tf.where(kept, weight, tf.zeros_like(weight)), gradient

    return masked(weight, logits)


def _count(logits: Any, multiplier: float) -> Any:
    @tf.custom_gradient
    def count(logits: Any) -> Any:
        found = tf.reduce_sum(tf.cast(logits > 0, tf.float32))
        return found, lambda upstream: _slope(logits) * upstream * multiplier

    return count(logits)
