# SPDX-License-Identifier: Apache-2.0
"""Strip removes hidden channels from Keras models, which compute what they did with masks."""

from __future__ import annotations

import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from nncf.graph.channels import find_channels
from nncf.tensorflow.capture import capture
from tests.algorithms.filter_pruning import keras_networks
from tests.algorithms.filter_pruning.keras_networks import IMAGES, NETWORKS, network
from tests.tensorflow_models import Subclassed, compressed

FREE = {"prune_first_conv": True, "prune_downsample_convs": True, "channel_multiple": 1}
ONE_STEP = 5e-3
"""Summed in another order, a value at the edge between two levels may come to the other one."""
DATA = np.random.default_rng(2).uniform(-1, 1, (16, 8, 8, 3)).astype("float32")


def pruned(model, *others, level=0.5, data=DATA, **rest):
    """Return the controller of a pruned model and the model."""
    pruning = {"algorithm": "filter_pruning", "pruning_init": level, "params": FREE}
    return compressed(model, pruning, *others, data=data, **rest)


def difference(first, second, x=IMAGES):
    return np.abs(first(x, training=False).numpy() - second(x, training=False).numpy()).max()


def head_on(x):
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize("body", NETWORKS, ids=lambda body: body.__name__)
@pytest.mark.parametrize("level", [0.5, 0.8])
def test_a_smaller_model_that_computes_the_same(body, level):
    """Channels are gone from every network, its outputs are those of the masked one."""
    model = network(body)
    controller, masked = pruned(model, level=level)
    assert difference(masked, model) > 1e-3
    stripped = controller.strip()
    assert difference(stripped, masked) < 1e-5
    current = controller.statistics().filter_pruning.model_statistics.current
    trained = sum(int(np.prod(v.shape)) for v in stripped.trainable_variables)
    assert trained == current.parameters
    assert trained < 0.55 * model.count_params()


@pytest.mark.parametrize("body", NETWORKS, ids=lambda body: body.__name__)
def test_quantized_and_smaller(body):
    """With quantization, strip removes channels and leaves native quantizers."""
    model = network(body)
    controller, masked = pruned(model, "quantization")
    stripped = controller.strip()
    assert difference(stripped, masked) < ONE_STEP
    assert stripped.count_params() < 0.55 * model.count_params()
    assert any("Quant" in type(op).__name__ for op in stripped.operations)
    assert not any("nncf" in type(op).__module__ for op in stripped.operations)


@pytest.mark.parametrize("body", NETWORKS, ids=lambda body: body.__name__)
def test_quantizers_with_a_range_per_channel_become_shorter(body):
    """Ranges of channels that are gone go too, in activations as in weights."""
    per_channel = {"algorithm": "quantization", "activations": {"per_channel": True}}
    controller, masked = pruned(network(body), per_channel, target_device="TRIAL")
    assert difference(controller.strip(), masked) < ONE_STEP


def test_a_file_without_nncf(tmp_path):
    """The smaller model is saved and loaded without nncf."""
    controller, masked = pruned(network(keras_networks.norms))
    controller.strip().save(tmp_path / "plain.keras")
    with zipfile.ZipFile(tmp_path / "plain.keras") as archive:
        assert b"nncf" not in archive.read("config.json")
    assert difference(keras.saving.load_model(tmp_path / "plain.keras"), masked) < 1e-5


def test_the_masked_model_stays_as_it_was():
    """strip() can be called twice, in place too, and what it returns can be trained."""
    controller, masked = pruned(network(keras_networks.reshape))
    before = masked(IMAGES, training=False).numpy()
    first, second = controller.strip(), controller.strip(do_copy=False)
    np.testing.assert_array_equal(masked(IMAGES, training=False), before)
    assert difference(first, second) == 0
    first.compile("sgd", "mse")
    first.fit(DATA, np.zeros((16, 5)), epochs=1, verbose=0)
    np.testing.assert_array_equal(masked(IMAGES, training=False), before)


def test_a_nested_model_and_a_shared_layer():
    """Layers inside of a nested model become shorter, shared ones at all their calls."""
    inner = keras.Sequential(
        [keras.Input((8, 8, 16)), layers.Conv2D(16, 3, padding="same"), layers.ReLU()]
    )
    shape = layers.Reshape((64, 16))
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same")(image)
    joined = layers.Concatenate()([shape(inner(inner(x))), shape(x)])
    model = keras.Model(image, layers.Dense(4)(layers.GlobalMaxPooling1D()(joined)))
    controller, masked = pruned(model)
    stripped = controller.strip()
    assert difference(stripped, masked) < 1e-5
    assert stripped.count_params() < 0.5 * model.count_params()


def test_one_reshape_at_two_places_with_different_channels():
    """A layer that writes a size down is called with another size at each place."""
    shape = layers.Reshape((64, 16))
    image = keras.Input((8, 8, 3))
    maps = [layers.Conv2D(16, 3, padding="same")(image) for _ in range(2)]
    first, second = (layers.GlobalMaxPooling1D()(shape(x)) for x in maps)
    model = keras.Model(image, layers.Dense(4)(layers.Concatenate()([first, second])))
    controller, masked = pruned(model, level=0)
    controller.set_pruning_level({0: 0.5, 1: 0.25})
    stripped = controller.strip()
    assert difference(stripped, masked) < 1e-5
    sizes = {op.target_shape for op in stripped.operations if isinstance(op, layers.Reshape)}
    assert sizes == {(64, 8), (64, 12)}


def test_a_subclassed_model():
    """What is inside of a user's layer becomes shorter; what cannot be followed stays."""
    model = Subclassed()
    data = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    model(data)
    controller, masked = pruned(model, data=data)
    assert "it has a variable of its own (gain)" in str(controller.groups)
    stripped = controller.strip()
    assert difference(stripped, masked, data) < 1e-5
    assert stripped.count_params() < model.count_params()


def test_embeddings_and_attention():
    """An embedding becomes narrower; what attention reads keeps its channels."""
    text = keras.Input((12,), dtype="int32")
    x = layers.Dense(16, activation="gelu")(layers.Embedding(20, 16, name="table")(text))
    x = layers.Conv1D(16, 3, name="read")(x)
    x = layers.MultiHeadAttention(2, 8)(x, x) + x
    model = keras.Model(text, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))
    data = np.random.default_rng(0).integers(0, 20, (8, 12)).astype("int32")
    controller, masked = pruned(model, data=data)
    stripped = controller.strip()
    assert difference(stripped, masked, data) < 1e-5
    assert stripped.get_layer("table").output_dim == 8
    assert stripped.get_layer("read").filters == 16


def test_an_initializer_that_holds_an_array():
    """A layer that was made from given values becomes shorter as any other."""
    table = np.random.default_rng(0).normal(size=(20, 16)).astype("float32")
    text = keras.Input((12,), dtype="int32")
    given = keras.initializers.Constant(table)
    x = layers.Conv1D(16, 3)(layers.Embedding(20, 16, embeddings_initializer=given)(text))
    model = keras.Model(text, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))
    data = np.random.default_rng(0).integers(0, 20, (8, 12)).astype("int32")
    controller, masked = pruned(model, data=data)
    assert difference(controller.strip(), masked, data) < 1e-5


class Plain(layers.Conv2D):
    """A convolution of a user's that is made like one of Keras."""


class Sixteen(layers.Conv2D):
    """A convolution of a user's that always has sixteen filters."""

    def __init__(self, **rest):
        rest = {name: rest[name] for name in ("name", "dtype", "trainable") if name in rest}
        super().__init__(16, 3, **rest)


def test_layers_derived_from_those_of_keras():
    """A user's class is kept; one that cannot have fewer filters keeps all."""
    image = keras.Input((8, 8, 3))
    x = Sixteen(name="fixed")(Plain(16, 3, name="own")(image))
    model = keras.Model(image, head_on(layers.Conv2D(16, 3)(x)))
    controller, masked = pruned(model)
    stripped = controller.strip()
    assert difference(stripped, masked) < 1e-5
    assert stripped.get_layer("fixed").filters == 16
    assert "makes no other layer" in str(controller.groups)
    assert type(stripped.get_layer("own")) is Plain


def test_what_is_not_known_keeps_its_channels():
    """Constants, slices of channels and Lambda layers pin the channels that they meet."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3)(image) * np.linspace(0.5, 1, 16).astype("float32")
    x = layers.Conv2D(16, 3)(x)[..., :12]
    x = layers.Lambda(lambda value: value[..., ::-1])(layers.Conv2D(16, 1)(x))
    model = keras.Model(image, head_on(layers.Conv2D(16, 1)(x)))
    controller, masked = pruned(model)
    reasons = str(controller.groups)
    assert "it meets a constant whose channels stay" in reasons
    assert "its call says where to cut it" in reasons
    assert "nncf does not look inside Lambda" in reasons
    assert difference(controller.strip(), masked) < 1e-5


def test_a_spatial_size_that_is_open():
    """A model for images of any size loses channels too."""
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(16, 3, activation="relu")(image)
    model = keras.Model(image, head_on(layers.Conv2D(16, 3)(x)))
    controller, masked = pruned(model)
    stripped = controller.strip()
    assert difference(stripped, masked) < 1e-5
    assert stripped.input_shape == (None, None, None, 3)
    assert stripped.count_params() < 0.5 * model.count_params()


def test_channels_first_tensors():
    """Channels are axis 1 where a layer says so, through flatten too."""
    first = {"data_format": "channels_first"}
    image = keras.Input((3, 8, 8))
    x = layers.Conv2D(16, 3, name="conv", **first)(image)
    x = layers.MaxPooling2D(2, **first)(layers.BatchNormalization(axis=1)(x))
    model = keras.Model(image, layers.Dense(4, name="head")(layers.Flatten(**first)(x)))
    channels = find_channels(capture(model, keras.KerasTensor((None, 3, 8, 8))).graph)
    shortened = channels.tensor_axes()
    assert {name for name, axes in shortened.items() if 0 in axes} >= {"conv/bias", "head/kernel"}
    assert np.array_equal(shortened["head/kernel"][0], np.tile(shortened["conv/bias"][0], 9))
