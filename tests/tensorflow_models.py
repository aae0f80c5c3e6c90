# SPDX-License-Identifier: Apache-2.0
"""Small Keras models and configurations that several tests are about."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import nncf
from nncf.tensorflow import create_compressed_model

IMAGES = np.random.default_rng(0).uniform(-1, 1, (24, 12, 12, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 5, 24)


def convnet():
    """Return convolutions with batch norm, a residual, a shared layer and a dense head."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv1")(image)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(momentum=0.5, name="bn1")(x))
    shared = layers.Conv2D(8, 3, padding="same", activation="relu", name="shared")
    x = layers.Add(name="add")([x, shared(shared(x))])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(5, name="head")(x), name="convnet")
    for _ in range(8):  # moving averages as those of a trained model
        model(IMAGES, training=True)
    return model


def every_kind():
    """Return a model with the layers that are written in steps, nested models and operators."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3))
    x = layers.Rescaling(0.5, offset=1.0)(image)
    x = layers.SeparableConv2D(6, 3, padding="same", activation="relu", name="separable")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu6", name="depthwise")(x)
    x = x * 2 + 1
    inner = keras.Sequential(
        [keras.Input((10, 10, 12)), layers.Conv2DTranspose(4, 3, name="up"), layers.ReLU()],
        name="inner",
    )
    x = layers.Concatenate()([inner(x), layers.ZeroPadding2D(1)(x)])
    x = layers.Lambda(lambda value: value * 1.5, name="lambda")(x)
    x = layers.Conv1D(4, 2, name="conv1d")(layers.Reshape((-1, 16))(x))
    x = layers.LSTM(4, name="lstm")(x)
    return keras.Model(image, [layers.Dense(3, name="a")(x), layers.Dense(2, name="b")(x)])


class Block(layers.Layer):
    """A user's layer that can be followed."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.first = layers.Dense(width, activation="relu")
        self.second = layers.Dense(width)
        self.norm = layers.BatchNormalization(momentum=0.99)

    def call(self, x, training=None):
        return self.norm(self.second(self.first(x)), training=training) + x


class Gain(layers.Layer):
    """A user's layer with a variable of its own, which cannot be followed, around a Dense."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(8, name="hidden")

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) * self.gain


class Subclassed(keras.Model):
    """A subclassed model of user's layers."""

    def __init__(self):
        super().__init__()
        self.stem = layers.Dense(8, name="stem")
        self.block = Block(name="block")
        self.gain = Gain(name="gain")
        self.head = layers.Dense(5, name="head")

    def call(self, x, training=None):
        return self.head(self.gain(self.block(self.stem(x), training=training)))


def configuration(*algorithms, data=None, batch=8, **rest):
    """Return an NNCFConfig of algorithms (names or dicts) with a data set registered."""
    sections = [item if isinstance(item, dict) else {"algorithm": item} for item in algorithms]
    config = nncf.NNCFConfig.from_dict({"compression": sections, **rest})
    images = IMAGES if data is None else data
    dataset = tf.data.Dataset.from_tensor_slices((images, LABELS[: len(images)])).batch(batch)
    return nncf.register_default_init_args(config, dataset, batch)


def compressed(model, *algorithms, data=None, state=None, **rest):
    """Return controller and compressed model."""
    config = configuration(*algorithms, data=data, **rest)
    return create_compressed_model(model, config, state, dump_graphs=False)


def compiled(model):
    """Return the model ready for ``fit``."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return model
