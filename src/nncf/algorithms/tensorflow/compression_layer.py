# SPDX-License-Identifier: Apache-2.0
"""What all CompressionOps for Keras are: a layer that runs on activations and on weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class CompressionLayer(keras.layers.Layer):
    """A CompressionOp as a Keras layer.

    Subclasses say what ``compress(x)`` makes of a float32 tensor. ``enabled`` False makes the
    layer the identity, in functions that are compiled already too. While ``observer`` is set,
    each input goes to it and passes unchanged.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs, autocast=False)
        self.supports_masking = True
        self.observer: Callable[[Any], Any] | None = None
        self.built = True
        self._on = self.add_weight(
            shape=(), dtype="bool", initializer="ones", trainable=False, name="enabled"
        )

    def call(self, inputs: Any) -> Any:
        """Return the tensor compressed, in its own dtype; what is no float passes."""
        if self.observer is not None:
            self.observer(inputs)
            return inputs
        if not inputs.dtype.is_floating:
            return inputs
        return tf.cond(
            tf.convert_to_tensor(self._on),
            lambda: tf.cast(self.compress(tf.cast(inputs, tf.float32)), inputs.dtype),
            lambda: tf.identity(inputs),
        )

    def compress(self, x: Any) -> Any:
        """Return the tensor (float32) compressed."""
        raise NotImplementedError

    def bake(self, weight: Any) -> Any:
        """Return the weight compressed, or itself while the op is switched off."""
        weight = tf.convert_to_tensor(weight)
        return self.compress(weight) if self.enabled else weight

    @property
    def enabled(self) -> bool:
        return bool(self._on.numpy())

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._on.assign(bool(value))

    def compute_output_spec(self, inputs: Any, **_: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": "float32", "trainable": self.trainable}
