# SPDX-License-Identifier: Apache-2.0
"""Image classification in Keras, compressed as a configuration says, to a deployed file.

Trains a small residual network on scikit-learn's handwritten digits, compresses it with the five
lines marked below, trains on, writes a ``.keras`` and a ``.tflite`` file, and prints what was
gained. Any configuration that suits Keras models will do, for example
``configs/{int8,pruning_int8,sparsity_rb_int8,int8_distillation}.json``.

    python examples/keras_digits.py [--config FILE] [--epochs N] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from nncf import NNCFConfig, nncf_logger
from nncf.tensorflow import (
    create_compressed_model,
    create_compression_callbacks,
    register_default_init_args,
)

HERE = Path(__file__).parent


def digits() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The 1,797 digits of scikit-learn, 8x8 grey, enlarged to 16x16; every fifth is held back."""
    data = load_digits()
    images = tf.image.resize(data.images[..., None] / 16 - 0.5, (16, 16)).numpy()
    held_back = np.arange(len(images)) % 5 == 0
    parts = [(images[part], data.target[part]) for part in (~held_back, held_back)]
    return parts[0], parts[1]


def block(x: Any, width: int, stride: int) -> Any:
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""
    y = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
    y = layers.BatchNormalization(momentum=0.9)(
        layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
    )
    if stride != 1 or x.shape[-1] != width:
        x = layers.BatchNormalization(momentum=0.9)(
            layers.Conv2D(width, 1, stride, use_bias=False)(x)
        )
    return layers.ReLU()(layers.Add()([y, x]))


def network() -> keras.Model:
    """A stem, three stages of one block each, and a linear classifier."""
    image = keras.Input((16, 16, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        x = block(x, width, stride)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, name="scores")(x), name="digits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=HERE / "configs" / "int8.json")
    parser.add_argument("--epochs", type=int, default=6, help="before, and again compressed")
    parser.add_argument("--output", type=Path, default=Path("runs/keras_digits"))
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    nncf_logger.setLevel(logging.WARNING)
    train, test = digits()
    dataset = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[1])).batch(64)

    print("Training in floating point")
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(dataset, epochs=arguments.epochs, verbose=0)
    _, float_accuracy = model.evaluate(*test, verbose=0)

    print(f"Compressing with {arguments.config.name} and training on")
    nncf_config = NNCFConfig.from_json(arguments.config)  # line 1
    nncf_config["log_dir"] = str(arguments.output)
    nncf_config = register_default_init_args(nncf_config, dataset, 64)  # line 2
    controller, compressed = create_compressed_model(model, nncf_config)  # line 3
    callbacks = create_compression_callbacks(controller, log_dir=arguments.output)  # line 4
    compressed.fit(dataset, epochs=arguments.epochs, callbacks=callbacks, verbose=0)  # line 5
    accuracy = compressed.evaluate(*test, return_dict=True, verbose=0)["accuracy"]

    print("Writing the deployed files; each is run and compared with the trained model")
    print(controller.statistics())
    small = controller.strip()
    table = Table(title=f"Before and after {arguments.config.name}")
    for column in ("", "accuracy", "parameters", "LiteRT file"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("FP32", f"{float_accuracy:.2%}", f"{model.count_params():,}", lite_size(model))
    controller.export_model(str(arguments.output / "compressed.keras"))
    parity = controller.export_model(str(arguments.output / "compressed.tflite"))
    size = (arguments.output / "compressed.tflite").stat().st_size
    table.add_row(
        "compressed", f"{accuracy:.2%}", f"{small.count_params():,}", f"{size / 1024:.0f} KiB"
    )
    Console().print(table)
    print(f"{parity.runtime}: same class for {parity.outputs[0].agreement:.0%} of the samples")


def lite_size(model: keras.Model) -> str:
    """Return the size of the LiteRT file of a model in floating point."""
    with contextlib.redirect_stdout(io.StringIO()):  # the converter lists all variables
        data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    return f"{len(data) / 1024:.0f} KiB"


if __name__ == "__main__":
    main()
