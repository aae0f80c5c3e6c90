# SPDX-License-Identifier: Apache-2.0
"""Which Keras this is: nncf needs Keras 3 on its TensorFlow backend."""

from __future__ import annotations

from nncf.errors import MissingDependency, ModelError


def check_keras() -> None:
    """Raise MissingDependency without Keras 3 or TensorFlow, ModelError for another backend."""
    try:
        import tensorflow  # noqa: F401, I001  # before keras, which fails in other words without it
        import keras
    except ModuleNotFoundError as error:
        if error.name not in ("keras", "tensorflow"):
            raise
        raise MissingDependency(error.name, "tf", "compressing Keras models") from error
    if int(keras.__version__.partition(".")[0]) < 3:
        raise MissingDependency("keras>=3", "tf", "compressing Keras models")
    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            f"Keras runs on its backend {keras.backend.backend()!r}, and nncf compresses Keras "
            "models on TensorFlow. Set KERAS_BACKEND=tensorflow in the environment before keras is "
            "imported."
        )
