# SPDX-License-Identifier: Apache-2.0
"""What ``test_distributed.py`` runs in a process of its own: TensorFlow must not have started."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from tempfile import TemporaryDirectory

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import nncf
from nncf.tensorflow import create_compressed_model, create_compression_callbacks

CPUS = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(CPUS[0], [tf.config.LogicalDeviceConfiguration()] * 2)

IMAGES = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 5, 16)


def network(*, batch_norm: bool):
    """Return a small network; without batch norm two halves of a batch train as one."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x) if batch_norm else x
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(image, layers.Dense(5, name="head")(x))


def train(sections, *, batch_norm: bool, strategy=None, custom: bool = False):
    """Compress and train two steps; return the model, the controller and the last loss."""
    scope = (strategy or tf.distribute.get_strategy()).scope()
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)
    with scope:
        model = network(batch_norm=batch_norm)
        config = nncf.NNCFConfig.from_dict({"compression": sections})
        nncf.register_default_init_args(config, dataset, 8)
        controller, compressed = create_compressed_model(model, config, dump_graphs=False)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        compressed.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    callbacks = create_compression_callbacks(controller, log_tensorboard=False, log_text=False)
    if custom:
        return compressed, controller, own_loop(compressed, controller, strategy, dataset)
    history = compressed.fit(dataset, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
    return compressed, controller, history.history["loss"][-1]


def train_aware(folder: str, strategy, *, stops: bool):
    """Train three epochs by ``accuracy_aware_fit``, in one run or in one that stops and goes on."""
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)
    section = {
        "mode": "early_exit",
        "params": {"maximal_absolute_accuracy_degradation": 0.0, "maximal_total_epochs": 3},
    }
    compression = [{"algorithm": "quantization"}]
    for stop in (1, None) if stops else (None,):
        with strategy.scope():
            model = network(batch_norm=False)
            config = nncf.NNCFConfig.from_dict(
                {"compression": compression, "accuracy_aware_training": section}
            )
            nncf.register_default_init_args(config, dataset, 8)
            controller, compressed = create_compressed_model(model, config, dump_graphs=False)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
            compressed.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
        data = dataset.unbatch().shuffle(16, seed=1).batch(8)
        with suppress(KeyboardInterrupt):
            compressed.accuracy_aware_fit(
                data, controller, config, [Interrupted(stop)], uncompressed_model_accuracy=2.0,
                validation_data=dataset, log_dir=folder, resume=True, verbose=False,
            )  # fmt: skip
    return compressed


class Interrupted(keras.callbacks.Callback):
    """Ctrl-C at the end of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def own_loop(model, controller, strategy, dataset):
    """Train with ``strategy.run``; return the last loss."""
    with strategy.scope():
        criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)

    def replica(x, y):
        with tf.GradientTape() as tape:
            scores = model(x, training=True)
            loss = tf.nn.compute_average_loss(criterion(y, scores), global_batch_size=8)
            loss += controller.loss() / strategy.num_replicas_in_sync
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    @tf.function
    def step(batch):
        return strategy.reduce("SUM", strategy.run(replica, batch), axis=None)

    controller.scheduler.epoch_step()
    for batch in strategy.experimental_distribute_dataset(dataset):
        controller.scheduler.step()
        loss = step(batch)
    return float(loss)


def values(model):
    return [np.asarray(v.numpy(), np.float64) for v in model.trainable_variables]


def difference(first, second):
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


def main() -> None:
    """Print what was found as JSON."""
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    int8 = [{"algorithm": "quantization"}]
    everything = [
        {"algorithm": "rb_sparsity", "sparsity_init": 0.1},
        *int8,
        {"algorithm": "knowledge_distillation", "type": "mse"},
    ]
    found = {"replicas": two.num_replicas_in_sync}
    alone, _, _ = train(int8, batch_norm=False)
    mirrored, _, _ = train(int8, batch_norm=False, strategy=two)
    found["one against two"] = difference(values(alone), values(mirrored))
    own, _, _ = train(int8, batch_norm=False, strategy=two, custom=True)
    found["a loop of one's own"] = difference(values(mirrored), values(own))
    with TemporaryDirectory() as folder:
        aware = [train_aware(f"{folder}/{s}", two, stops=s) for s in (False, True)]
    found["accuracy-aware, stopped"] = difference(*(values(model) for model in aware))
    model, controller, loss = train(everything, batch_norm=True, strategy=two)
    found["everything"] = float(loss)
    found["stripped"] = difference(
        [controller.strip()(IMAGES).numpy()], [model(IMAGES, training=False).numpy()]
    )
    own, controller, loss = train(everything, batch_norm=True, strategy=two, custom=True)
    found["everything in a loop"] = loss
    local = [two.experimental_local_results(v.value) for v in own.trainable_variables]
    found["between replicas"] = max(difference([a.numpy()], [b.numpy()]) for a, b in local)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
