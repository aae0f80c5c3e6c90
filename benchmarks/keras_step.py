# SPDX-License-Identifier: Apache-2.0
"""The training step of Keras models under ``tf.function``: INT8 against floating point.

    python -m benchmarks.keras_step [--width 16] [--blocks 1] [--jit] [--steps 15]

ResNet-8 (``--blocks 3``: ResNet-20) for 32×32 images, batch 64, SGD with momentum. Both models
take turns step by step; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import nncf
from benchmarks.keras_cifar10 import resnet
from benchmarks.records import machine
from nncf.tensorflow import create_compressed_model

BATCH = 64


def step_of(model: keras.Model, jit: bool) -> Callable[[Any, Any], Any]:
    """Return a compiled training step of a model."""
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(jit_compile=jit)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = criterion(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks per stage")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--jit", action="store_true", help="compile with XLA")
    parser.add_argument("--steps", type=int, default=15)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(BATCH, 32, 32, 3)), tf.float32)
    labels = tf.constant(random.integers(0, 10, BATCH))
    model = resnet(arguments.blocks, width=arguments.width)
    config = nncf.NNCFConfig.from_dict({"compression": {"algorithm": "quantization"}})
    nncf.register_default_init_args(config, [(images, labels)], BATCH)
    _, compressed = create_compressed_model(model, config, dump_graphs=False)
    steps = {"FP32": step_of(model, arguments.jit), "INT8": step_of(compressed, arguments.jit)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.steps + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step(images, labels).numpy()
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(machine())
    print(
        f"{model.count_params():,} parameters: FP32 {medians['FP32']:.1f} ms, INT8 "
        f"{medians['INT8']:.1f} ms, {medians['INT8'] / medians['FP32']:.2f} ×"
    )


if __name__ == "__main__":
    main()
