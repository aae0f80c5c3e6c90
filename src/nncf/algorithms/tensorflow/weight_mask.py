# SPDX-License-Identifier: Apache-2.0
"""A mask on a weight: what it drops is zero in the forward and gets no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from nncf.algorithms.tensorflow.compression_layer import CompressionLayer


class WeightMask(CompressionLayer):
    """Sets the dropped elements of a weight to zero; the variable ``mask`` has a bool for each.

    The weight itself keeps its values, so that one that comes back goes on where it was.
    """

    def __init__(self, shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight_shape = tuple(shape)
        self.mask = self.add_weight(
            shape=self.weight_shape, dtype="bool", initializer="ones", trainable=False, name="mask"
        )

    def compress(self, x: Any) -> Any:
        return tf.where(tf.convert_to_tensor(self.mask), x, tf.zeros_like(x))

    def kept(self) -> NDArray[np.bool_]:
        """Return what stays, as bools."""
        return np.asarray(self.mask.numpy(), np.bool_)

    def keep(self, kept: Any) -> None:
        """Take a new mask, given as bools of the weight's shape."""
        self.mask.assign(np.asarray(kept, np.bool_))

    def zeros(self, weight: Any) -> int:
        """Return how many elements of the masked weight are zero."""
        values = np.asarray(weight)
        return values.size - int(np.count_nonzero(np.where(self.kept(), values, 0)))

    def describe(self) -> Mapping[str, Any]:
        """Return what this mask is, as JSON-able data (for reports)."""
        kept = self.kept()
        return {
            "kind": "mask",
            "shape": list(kept.shape),
            "dropped": int(kept.size - np.count_nonzero(kept)),
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shape": list(self.weight_shape)}
