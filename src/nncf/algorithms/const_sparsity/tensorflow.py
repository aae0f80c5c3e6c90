# SPDX-License-Identifier: Apache-2.0
"""The mask of const sparsity as a Keras layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from nncf.algorithms.tensorflow.weight_mask import WeightMask
from nncf.compression.layout import Insert


def make_op(insert: Insert, name: str) -> ConstWeightMask:
    """Return the running op of one Insert."""
    return ConstWeightMask(insert.shape, name=name)


@keras.saving.register_keras_serializable("nncf")
class ConstWeightMask(WeightMask):
    """Keeps what is zero in the weight that it was shown last."""

    def weight_loaded(self, weight: Any) -> None:
        """Take the zeros of a weight."""
        self.keep(np.asarray(weight) != 0)
