# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped goes on as if it had never stopped."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from nncf.errors import CheckpointError, ConfigError
from nncf.tensorflow import create_compressed_model, create_compression_callbacks
from nncf.tensorflow.callbacks.checkpoint_callback import CheckpointManagerCallback
from nncf.tensorflow.utils.state import TFCompressionState, TFCompressionStateLoader
from tests.tensorflow_models import IMAGES, LABELS, compiled, compressed, configuration, convnet


def trained(model, epochs, first=0, callbacks=()):
    model.fit(
        IMAGES, LABELS, batch_size=8, shuffle=False, verbose=0,
        initial_epoch=first, epochs=epochs, callbacks=list(callbacks),
    )  # fmt: skip
    return model


def test_bit_exact_resume(tmp_path):
    """Two epochs, a checkpoint, two more in a new model: the same bits as four epochs at once."""
    whole = trained(compressed(compiled(convnet()), "quantization")[1], 4)

    controller, part = compressed(compiled(convnet()), "quantization")
    trained(part, 2)
    checkpoint = tf.train.Checkpoint(model=part, compression_state=TFCompressionState(controller))
    path = checkpoint.save(tmp_path / "run")

    loader = TFCompressionStateLoader()
    tf.train.Checkpoint(compression_state=loader).restore(path).expect_partial()
    _, resumed = compressed(compiled(convnet()), "quantization", state=loader.state)
    resumed.optimizer.build(resumed.trainable_variables)
    tf.train.Checkpoint(model=resumed).restore(path).assert_existing_objects_matched()
    trained(resumed, 4, first=2)
    for a, b in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_resume_from_a_keras_file(tmp_path):
    """Weights come back from a .keras file as well."""
    controller, quantized = compressed(compiled(convnet()), "quantization")
    trained(quantized, 1)
    quantized.save(tmp_path / "model.keras")
    state = json.loads(json.dumps(controller.get_compression_state()))
    _, other = compressed(convnet(), "quantization", state=state)
    other.load_weights(tmp_path / "model.keras")
    np.testing.assert_array_equal(other(IMAGES), quantized(IMAGES))


def test_layers_that_keras_numbers_anew():
    """A state fits a model whose layers got other automatic names."""

    def build():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [keras.Input((12, 12, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
             keras.layers.Dense(5)]
        )  # fmt: skip

    controller, first = compressed(build(), "quantization")
    state = controller.get_compression_state()
    other, second = compressed(build(), "quantization", state=state)
    names = {i.name for i in controller.layout}, {i.name for i in other.layout}
    assert names[0] != names[1]
    second.set_weights(first.get_weights())
    np.testing.assert_array_equal(first(IMAGES), second(IMAGES))


def test_callbacks_drive_and_draw(tmp_path):
    """Fit with our callbacks steps the scheduler, and saves a checkpoint after each epoch."""
    controller, quantized = compressed(compiled(convnet()), "quantization")
    state = TFCompressionState(controller)
    checkpoint = tf.train.Checkpoint(model=quantized, compression_state=state)
    callbacks = create_compression_callbacks(controller, log_dir=tmp_path / "logs")
    callbacks.append(CheckpointManagerCallback(checkpoint, tmp_path / "saved"))
    trained(quantized, 2, callbacks=callbacks)
    assert controller.scheduler.current_epoch == 1
    assert controller.scheduler.current_step == 5
    assert tf.train.latest_checkpoint(tmp_path / "saved").endswith("ckpt-2")


def test_statistics_go_to_tensorboard(tmp_path):
    """Numbers of the algorithms are written when training begins and after each epoch."""
    section = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.3}
    controller, sparse = compressed(compiled(convnet()), section)
    trained(sparse, 2, callbacks=create_compression_callbacks(controller, log_dir=tmp_path))
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = [tf.compat.v1.Event.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(file))]
    tags = [value.tag for event in events for value in event.summary.value]
    tag = "compression/statistics/magnitude_sparsity/sparsity_level_for_model"
    assert tags.count(tag) == 3


def test_callbacks_refuse_what_is_wrong(tmp_path):
    """TensorBoard needs a folder, a checkpoint a sensible frequency."""
    controller, _ = compressed(convnet(), "quantization")
    with pytest.raises(ConfigError, match="log_dir"):
        create_compression_callbacks(controller)
    with pytest.raises(ConfigError, match="save_freq"):
        CheckpointManagerCallback(tf.train.Checkpoint(), tmp_path, save_freq="often")


def test_a_state_of_another_model():
    """The error says which operation is missing."""
    controller, _ = compressed(convnet(), "quantization")
    state = controller.get_compression_state()
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="only")])
    config = configuration("quantization", data=np.ones((8, 4), "float32"))
    with pytest.raises(CheckpointError, match="does not have"):
        create_compressed_model(other, config, state)


def test_a_loader_that_restored_nothing():
    """Reading a state before it was restored is an error that says what to do."""
    with pytest.raises(CheckpointError, match="restore"):
        _ = TFCompressionStateLoader().state
