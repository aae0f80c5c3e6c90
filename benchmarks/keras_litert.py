# SPDX-License-Identifier: Apache-2.0
"""ResNet-8 as INT8 in LiteRT: size beside the float file, agreement with the trained model.

    .venv/bin/python -m benchmarks.keras_litert --data FOLDER

``FOLDER`` holds ``cifar10_jpeg/train.zip`` and ``test_even.zip``. Without it weights are random,
and so are images: size and agreement are measured all the same.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import nncf
from nncf.tensorflow import create_compressed_model
from nncf.tensorflow.litert import LiteRTFile

COMPARED = 1000


def resnet8() -> Any:
    """Return a ResNet-8 for images of 32×32 (three stages of one block, 78 thousand parameters)."""
    image = keras.Input((32, 32, 3), name="image")
    x = _convolution(image, 16, 3, 1, activation=True)
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        y = _convolution(x, width, 3, stride, activation=True)
        y = _convolution(y, width, 3, 1, activation=False)
        if stride > 1:
            x = _convolution(x, width, 1, stride, activation=False)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, name="head")(x), name="resnet8")


def _convolution(x: Any, width: int, size: int, stride: int, *, activation: bool) -> Any:
    x = layers.Conv2D(width, size, stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if activation else x


def images(data: Path | None, name: str, per_class: int) -> tuple[Any, Any]:
    """Return images from −1 to 1 and labels: of a zip of JPEG files, or random ones."""
    if data is None:
        generator = np.random.default_rng(len(name))
        count = 10 * per_class
        random = generator.uniform(-1, 1, (count, 32, 32, 3)).astype("float32")
        return random, generator.integers(0, 10, count)
    from PIL import Image

    found, labels = [], []
    with zipfile.ZipFile(data / "cifar10_jpeg" / f"{name}.zip") as archive:
        files = sorted(file for file in archive.namelist() if file.endswith(".jpg"))
        classes = sorted({file.split("/")[-2] for file in files})
        for label, kind in enumerate(classes):
            for file in [f for f in files if f.split("/")[-2] == kind][:per_class]:
                pixels = np.asarray(Image.open(io.BytesIO(archive.read(file))).convert("RGB"))
                found.append(pixels)
                labels.append(label)
    return np.stack(found).astype("float32") / 127.5 - 1, np.array(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    train = images(arguments.data, "train", 500)
    test = images(arguments.data, "test_even", COMPARED // 10)
    model = resnet8()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    if arguments.data is not None:
        model.fit(*train, batch_size=64, epochs=arguments.epochs, verbose=2)
    dataset = tf.data.Dataset.from_tensor_slices(train).batch(64)
    config = nncf.NNCFConfig.from_dict({"compression": {"algorithm": "quantization"}})
    nncf.register_default_init_args(config, dataset, 64)
    controller, quantized = create_compressed_model(model, config, dump_graphs=False)
    if arguments.data is not None:
        quantized.fit(*train, batch_size=64, epochs=1, verbose=2)
    report(controller, quantized, model, test)


def report(controller: Any, quantized: Any, model: Any, test: tuple[Any, Any]) -> None:
    """Print size, agreement and accuracy of the INT8 file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet8.tflite"
        print(controller.export_model(path))
        size, file = path.stat().st_size, LiteRTFile(path)
        float_size = len(tf.lite.TFLiteConverter.from_keras_model(model).convert())
        x, y = test
        trained = np.asarray(quantized.predict(x, verbose=0)).argmax(1)
        deployed = np.array([file({"image": item[None]})["head"][0].argmax() for item in x])
    print(f"size: {size:,} bytes, {size / float_size:.3f} of the float file ({float_size:,})")
    print(f"same class as the trained model: {np.mean(trained == deployed):.2%} of {len(x)}")
    print(f"accuracy: trained {np.mean(trained == y):.2%}, file {np.mean(deployed == y):.2%}")


if __name__ == "__main__":
    main()
