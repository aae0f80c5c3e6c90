# SPDX-License-Identifier: Apache-2.0
"""A Keras model that is compressed learns from what it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from nncf.algorithms.knowledge_distillation import tensorflow as ours
from nncf.algorithms.knowledge_distillation import torch as theirs
from nncf.errors import CheckpointError, ConfigError, ModelError
from nncf.tensorflow import create_compressed_model
from tests.tensorflow_models import (
    IMAGES,
    LABELS,
    Subclassed,
    compiled,
    compressed,
    configuration,
    convnet,
)

SOFTMAX = {"algorithm": "knowledge_distillation", "type": "softmax", "temperature": 2.0}
MSE = {"algorithm": "knowledge_distillation", "type": "mse"}


@pytest.mark.parametrize("limit", [None, 1.0])
def test_both_backends_compute_the_same_loss(limit):
    """Value and gradient of both losses are those of the file for PyTorch."""
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 6, 5)).astype("float32")
    tensor = torch.tensor(student, requires_grad=True)
    expected = theirs.softmax_loss(
        tensor, torch.tensor(teacher), temperature=4.0, gradient_limit=limit
    )
    expected.backward()
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        found = ours.softmax_loss(variable, teacher, temperature=4.0, gradient_limit=limit)
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    gradient = tape.gradient(found, variable)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_the_loss_is_the_distance_to_the_model_as_it_was():
    """The loss of a training forward compares with the outputs before compression."""
    model = convnet()
    before = model(IMAGES, training=False)
    controller, quantized = compressed(model, "quantization", MSE)
    outputs = quantized(IMAGES, training=True)
    expected = float(tf.reduce_mean(tf.square(outputs - before)))
    assert float(controller.loss()) == pytest.approx(expected, rel=1e-4)
    assert float(controller.loss()) == 0  # each forward counts once
    assert controller.statistics().knowledge_distillation.to_str()


def test_the_teacher_does_not_move():
    """Training changes the shared weights, and not what the teacher says."""
    model = compiled(convnet())
    before = model(IMAGES, training=False).numpy()
    controller, quantized = compressed(model, "quantization", SOFTMAX)
    quantized.fit(IMAGES, LABELS, epochs=2, verbose=0)
    teacher = controller.child_ctrls[1].teaching.teacher
    np.testing.assert_allclose(teacher(IMAGES), before, atol=1e-6)
    assert np.abs(model(IMAGES, training=False).numpy() - before).max() > 1e-3


def test_fit_adds_the_loss():
    """The loss that fit reports has the distillation in it."""
    model = compiled(convnet())
    big = {**MSE, "scale": 1e6}
    _, quantized = compressed(model, "quantization", big)
    history = quantized.fit(IMAGES, LABELS, epochs=1, verbose=0).history
    assert history["loss"][0] > 10


def test_a_loop_of_ones_own():
    """In a compiled step controller.loss() is that of the forward in the same step."""
    controller, quantized = compressed(convnet(), "quantization", SOFTMAX)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            quantized(x, training=True)
            loss = controller.loss()
        return loss, tape.gradient(loss, quantized.trainable_variables)

    loss, gradients = step(IMAGES)
    assert float(loss) > 0
    assert any(g is not None and float(tf.reduce_max(tf.abs(g))) > 0 for g in gradients)
    np.testing.assert_allclose(step(IMAGES)[0], loss, rtol=0.5)


def test_a_larger_teacher():
    """A registered model teaches in place of the model itself."""
    other = keras.Sequential(
        [keras.Input((12, 12, 3)), keras.layers.Flatten(), keras.layers.Dense(5)]
    )
    config = configuration("quantization", MSE)
    from nncf.tensorflow import register_default_init_args

    register_default_init_args(config, IMAGES[None], 24, teacher=other)
    controller, quantized = create_compressed_model(convnet(), config, dump_graphs=False)
    outputs = quantized(IMAGES, training=True)
    expected = float(tf.reduce_mean(tf.square(outputs - other(IMAGES))))
    assert float(controller.loss()) == pytest.approx(expected, rel=1e-4)


def test_a_teacher_with_other_classes():
    """A teacher whose outputs do not match is refused before anything changes."""
    other = keras.Sequential(
        [keras.Input((12, 12, 3)), keras.layers.Flatten(), keras.layers.Dense(7)]
    )
    config = configuration("quantization", MSE)
    from nncf.tensorflow import register_default_init_args

    register_default_init_args(config, IMAGES[None], 24, teacher=other)
    with pytest.raises(ModelError, match="same classes"):
        create_compressed_model(convnet(), config, dump_graphs=False)


def test_a_subclassed_model_teaches_itself():
    """A model that cannot be copied teaches all the same."""
    model = Subclassed()
    data = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    model(data)
    controller, quantized = compressed(model, "quantization", MSE, data=data)
    quantized(data, training=True)
    assert float(controller.loss()) > 0


def test_another_teacher_after_a_checkpoint_is_refused():
    """A run that goes on must have the teacher that it began with."""
    controller, _ = compressed(convnet(), "quantization", MSE)
    state = controller.get_compression_state()
    other = convnet()
    other.get_layer("head").bias.assign([1, 2, 3, 4, 5])
    _, resumed = compressed(other, "quantization", MSE, state=state)
    resumed(IMAGES, training=False)
    with pytest.raises(CheckpointError, match="teacher"):
        resumed(IMAGES, training=True)


def test_features_are_for_pytorch():
    """Options that Keras models do not have are refused by name."""
    with pytest.raises(ConfigError, match=r"compression\[1\]\.features"):
        compressed(convnet(), "quantization", {**MSE, "features": ["conv1"]})
