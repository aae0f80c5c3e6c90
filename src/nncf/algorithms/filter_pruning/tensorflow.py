# SPDX-License-Identifier: Apache-2.0
"""Filter pruning in Keras: masks on channels, importance of filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nncf.algorithms.filter_pruning.scheme import ChannelMask, Fill
from nncf.algorithms.tensorflow.compression_layer import CompressionLayer
from nncf.compression.layout import Insert
from nncf.graph.channels import Ids, Producer


def make_op(insert: Insert, name: str) -> MaskedChannels:
    """Return the running op of one Insert whose description is a ChannelMask."""
    assert isinstance(insert.op, ChannelMask)
    return MaskedChannels(insert.op, insert.shape, name=name)


@keras.saving.register_keras_serializable("nncf")
class MaskedChannels(CompressionLayer):
    """Hides channels of a tensor that will be removed.

    ``fill`` says what stands in their place, as in the op for PyTorch. The variables are one mask
    per axis (``kept_<axis>``, 1 for what is kept).
    """

    def __init__(
        self, scheme: ChannelMask | dict[str, Any], shape: tuple[int, ...], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.scheme = scheme if isinstance(scheme, ChannelMask) else ChannelMask.from_state(scheme)
        self.tensor_shape = tuple(shape)
        for axis in self.scheme.axes:
            mask = self.add_weight(
                shape=(self.tensor_shape[axis],), initializer="ones", trainable=False,
                name=f"kept_{axis}",
            )  # fmt: skip
            setattr(self, f"kept_{axis}", mask)

    def mask(self, axis: int) -> Any:
        """Return the variable that holds the mask along an axis."""
        return getattr(self, f"kept_{axis}")

    def hidden(self, axis: int) -> NDArray[np.bool_]:
        """Return True for each channel that is hidden."""
        found: NDArray[np.bool_] = self.mask(axis).numpy() < 0.5
        return found

    def compress(self, x: Any) -> Any:
        """Return x (float32) with its hidden channels filled."""
        if self.scheme.fill != "zero":
            (axis,) = self.scheme.axes
            return _filled(x, tf.convert_to_tensor(self.mask(axis)), axis, fill=self.scheme.fill)
        for axis in self.scheme.axes:
            shape = [-1 if place == axis else 1 for place in range(len(x.shape))]
            x = x * tf.reshape(tf.convert_to_tensor(self.mask(axis)), shape)
        return x

    def native(self) -> Any:
        """Return what computes the same until the channels are removed: nothing if all are kept."""
        is_idle = not any(self.hidden(axis).any() for axis in self.scheme.axes)
        if is_idle:
            return lambda x: x
        other = MaskedChannels(self.scheme, self.tensor_shape, name=self.name)
        other.set_weights(self.get_weights())
        return other

    def describe(self) -> dict[str, Any]:
        """Return what this mask is, as JSON-able data (for statistics and reports)."""
        kept = {str(axis): int((~self.hidden(axis)).sum()) for axis in self.scheme.axes}
        return {"algorithm": self.scheme.algorithm, "fill": self.scheme.fill, "kept": kept}

    def get_config(self) -> dict[str, Any]:
        own = {"scheme": self.scheme.to_state(), "shape": list(self.tensor_shape)}
        return {**super().get_config(), **own}


def _filled(x: Any, mask: Any, axis: int, *, fill: Fill) -> Any:
    """Return x with the hidden channels at the mean, or at mean ± standard deviation, of the others.

    The formulas are those of the op for PyTorch.
    """
    shape = [-1 if place == axis else 1 for place in range(len(x.shape))]
    kept = tf.reshape(mask, shape)
    share = tf.reduce_mean(kept)
    if fill == "mean_square":
        square = tf.reduce_mean(x * x * kept, axis, keepdims=True) / share
        return tf.where(kept > 0, x, tf.sqrt(square))
    mean = tf.reduce_mean(x * kept, axis, keepdims=True) / share
    if fill == "mean":
        return tf.where(kept > 0, x, mean)
    variance = tf.reduce_mean(tf.square(x - mean) * kept, axis, keepdims=True) / share
    # the root has no gradient at zero, where nothing spreads either
    deviation = tf.sqrt(tf.maximum(variance, 1e-30))
    return tf.where(kept > 0, x, mean + deviation * tf.reshape(_spread(mask), shape))


def _spread(mask: Any) -> Any:
    """Return, for each hidden channel, by how many deviations it is off the mean.

    ±1 in turn, and for an odd number of them three values √1.5, −√1.5, 0 first: they sum to
    zero, and their squares to their number.
    """
    hidden = mask < 0.5
    place = tf.cumsum(tf.cast(hidden, tf.int32))  # 1, 2, … over the hidden ones
    signs = 1.0 - 2.0 * tf.cast(place % 2, mask.dtype)
    first, second = (tf.cast(place == number, mask.dtype) for number in (1, 2))
    is_odd = place[-1] % 2 == 1
    return tf.where(is_odd & (place <= 3), np.sqrt(1.5) * (first - second), signs)


# --- importance ----------------------------------------------------------------------------------


def filter_importance(
    weight: Any, producer: Producer, importance: str, *, normalized: bool
) -> NDArray[np.float64]:
    """Return the importance of each filter (index along the producer's axis), float64.

    The formulas are those for PyTorch. The two last axes of a depthwise kernel are one.
    """
    values = np.asarray(weight, np.float64)
    axis, filters_in_all = producer.axis, len(producer.ids)
    if values.shape[axis] != filters_in_all:
        values = values.reshape(*values.shape[:axis], filters_in_all)
    filters = np.moveaxis(values, axis, 0).reshape(filters_in_all, -1)
    if normalized:
        filters = filters / max(np.linalg.norm(filters), 1e-12)
    if importance == "L1":
        return np.abs(filters).sum(1)
    if importance == "L2":
        return np.sqrt(np.square(filters).sum(1))
    return _distances(filters).sum(1)


def _distances(filters: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.distance import cdist

    found: NDArray[np.float64] = cdist(filters, filters)
    return found


# --- masks ---------------------------------------------------------------------------------------


def set_masks(ops: Mapping[str, Any], axes: Mapping[str, Mapping[int, Ids]], kept: Any) -> None:
    """Hide every channel whose unit is not ``kept`` (bool by unit) from all masks."""
    for name, by_axis in axes.items():
        for axis, units in by_axis.items():
            ops[name].mask(axis).assign((kept[units] | (units < 0)).astype("float32"))
