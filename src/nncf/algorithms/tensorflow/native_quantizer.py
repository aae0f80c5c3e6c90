# SPDX-License-Identifier: Apache-2.0
"""A quantizer that no longer learns, made of the operations that converters know."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import keras
import tensorflow as tf

from nncf.algorithms.tensorflow.compression_layer import CompressionLayer

_ARGUMENTS = ("low", "high", "bits", "narrow", "axis", "name")


class NativeQuantizer:
    """A quantizer of fixed range: TensorFlow's fake quantization with constant ends.

    ``low`` and ``high`` have one number, or one for each index of ``axis``. Calling it with a
    symbolic tensor of Keras adds a layer of Keras' own to the model (one range per tensor), so
    that the model can be loaded without nncf.
    """

    def __init__(  # what the operation takes
        self,
        low: list[float],
        high: list[float],
        bits: int,
        narrow: bool,
        axis: int | None,
        *,
        name: str,
    ) -> None:
        self.low, self.high, self.bits, self.narrow = low, high, bits, narrow
        self.axis, self.name = axis, name

    @cached_property
    def operation(self) -> Any:
        """The operation of Keras that quantizes; calls at several places share it."""
        from keras.src.quantizers.quantizers import FakeQuantWithMinMaxVars

        operation = FakeQuantWithMinMaxVars(self.bits, self.narrow, self.axis)
        operation.name = self.name
        return operation

    def __call__(self, x: Any) -> Any:
        """Return a float32 tensor, symbolic or not, on the grid."""
        if self.axis is None:
            return self.operation(x, self.low[0], self.high[0])
        return self.operation(x, self.low, self.high)

    def to_state(self) -> dict[str, Any]:
        """Return what the constructor takes."""
        return {name: getattr(self, name) for name in _ARGUMENTS}

    def values(self, x: Any) -> Any:
        """Return a tensor on the grid, by TensorFlow's operations alone."""
        how = {"num_bits": self.bits, "narrow_range": self.narrow}
        if self.axis is None:
            return tf.quantization.fake_quant_with_min_max_vars(x, self.low[0], self.high[0], **how)
        last = len(x.shape) - 1
        order = [axis for axis in range(last + 1) if axis != self.axis] + [self.axis]
        moved = tf.transpose(x, order)
        y = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            moved, self.low, self.high, **how
        )
        back = sorted(range(last + 1), key=order.__getitem__)
        return tf.transpose(y, back)


@keras.saving.register_keras_serializable("nncf")
class FixedQuantizer(CompressionLayer):
    """A NativeQuantizer as a layer of ours, for places inside of layers that stay as they are."""

    def __init__(self, quantizer: NativeQuantizer | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        given = quantizer if isinstance(quantizer, dict) else quantizer.to_state()
        self.values = NativeQuantizer(**given)

    def compress(self, x: Any) -> Any:
        return self.values.values(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "quantizer": self.values.to_state()}


def fixed(op: CompressionLayer) -> CompressionLayer:
    """Return the layer that does for ever what an op does now."""
    if not op.enabled:
        return op
    return FixedQuantizer(op.native(), name=op.name)
