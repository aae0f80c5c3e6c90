# SPDX-License-Identifier: Apache-2.0
"""Small Keras networks to prune, each with another way in which channels hang together."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype("float32")


def _conv(x: Any, filters: int, size: int = 3, **rest: Any) -> Any:
    return layers.Conv2D(filters, size, padding="same", **rest)(x)


def _norm(x: Any) -> Any:
    return layers.ReLU()(layers.BatchNormalization()(x))


def _head(x: Any) -> Any:
    return layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x))


def resnet(x: Any) -> Any:
    """A stem, a residual block with a projection, and one without."""
    x = _norm(_conv(x, 16, use_bias=False))
    y = _conv(_norm(_conv(x, 24, strides=2)), 32)
    x = layers.Add()([layers.BatchNormalization()(_conv(x, 32, 1, strides=2)), y])
    y = _conv(_norm(_conv(x, 24)), 32)
    return _head(layers.ReLU()(layers.Add()([x, y])))


def mobilenet(x: Any) -> Any:
    """Depthwise convolutions, one with a multiplier, and an inverted residual."""
    x = _norm(_conv(x, 16))
    x = _norm(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = layers.BatchNormalization()(_conv(x, 16, 1))
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(_conv(x, 32, 1))
    x = layers.Add()([x, _conv(layers.ReLU(6.0)(y), 16, 1)])
    return _head(layers.SeparableConv2D(24, 3, activation="relu")(x))


def concat(x: Any) -> Any:
    """Branches that are concatenated, normalised together and used twice."""
    x = _conv(x, 16, activation="relu")
    x = _norm(layers.Concatenate()([_conv(x, 16), layers.MaxPooling2D(3, 1, "same")(x)]))
    return _head(_conv(x, 16, activation="relu"))


def flatten(x: Any) -> Any:
    """A flattened feature map, a dense layer and dropout."""
    x = layers.AveragePooling2D(2)(_conv(x, 16, activation="relu"))
    x = layers.Dense(32, activation="relu")(layers.Flatten()(x))
    return layers.Dense(5)(layers.Dropout(0.1)(x))


def reshape(x: Any) -> Any:
    """A layer and an operation that write sizes of channels down, and a permutation."""
    x = _conv(x, 16, activation="relu")
    x = layers.Dense(24, activation="relu")(layers.Reshape((64, 16))(x))
    x = ops.reshape(layers.Permute((2, 1))(x), (-1, 24 * 64))
    return layers.Dense(5)(x)


def groups(x: Any) -> Any:
    """Grouped convolutions and a group norm lose whole groups."""
    x = _conv(x, 32, groups=1, activation="relu")
    x = _conv(x, 32, groups=8, activation="relu")
    x = layers.GroupNormalization(8)(_conv(x, 16))
    return _head(layers.ReLU()(x))


def norms(x: Any) -> Any:
    """What normalises over channels, and what has one number for each."""
    x = layers.PReLU(shared_axes=(1, 2))(_conv(x, 16))
    x = layers.LayerNormalization()(x)
    x = layers.PReLU()(layers.Dense(24)(x))
    x = layers.RMSNormalization()(_conv(x, 16))
    return _head(layers.UnitNormalization()(_conv(x, 16)))


def transposed(x: Any) -> Any:
    """A transposed convolution, resizing, padding and cropping."""
    x = layers.UpSampling2D()(_conv(x, 16, strides=2, activation="relu"))
    x = layers.Conv2DTranspose(24, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Cropping2D(2)(layers.ZeroPadding2D(1)(x))
    return _head(_conv(x, 16))


def operators(x: Any) -> Any:
    """A sum over channels, a product of two branches, slices, and a split."""
    x = _conv(x, 16, activation="relu")
    gate = layers.Dense(16, activation="sigmoid")(layers.GlobalMaxPooling2D(keepdims=True)(x))
    x = x * gate + 0.5
    first, second = ops.split(_conv(x, 32), 2, axis=-1)
    x = ops.tanh(first) + second
    x = x / (1.0 + ops.mean(ops.abs(x), axis=-1, keepdims=True))
    return _head(_conv(x[:, 1:], 16))


def sequence(x: Any) -> Any:
    """Convolutions over one axis."""
    x = layers.Reshape((64, 3))(x)
    x = _norm(layers.Conv1D(16, 3, padding="causal")(x))
    x = layers.MaxPooling1D(2)(layers.SeparableConv1D(24, 3, activation="relu")(x))
    return layers.Dense(5)(layers.GlobalAveragePooling1D()(x))


NETWORKS = (
    *(resnet, mobilenet, concat, flatten, reshape, groups, norms, transposed, operators),
    sequence,
)


def network(body: Any) -> Any:
    """Return a model with biases and statistics that are not those of fresh layers."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, body(image), name=body.__name__)
    generator = np.random.default_rng(1)
    for variable in model.weights:
        if len(variable.shape) == 1:
            value = variable.numpy() + generator.uniform(-0.2, 0.4, variable.shape)
            variable.assign(np.abs(value) + 0.3 if "variance" in variable.path else value)
    return model
