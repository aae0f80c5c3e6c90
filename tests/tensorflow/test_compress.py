# SPDX-License-Identifier: Apache-2.0
"""From a Keras model and a configuration to a compressed model that Keras treats as any other."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import nncf
from nncf.errors import ConfigError, DataError, ModelError, NotCompressed
from nncf.tensorflow import create_compressed_model, strip
from nncf.tensorflow.capture import capture
from tests.tensorflow_models import (
    IMAGES,
    LABELS,
    Subclassed,
    compiled,
    compressed,
    configuration,
    convnet,
    every_kind,
)


def outputs_of(model, x=IMAGES):
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def largest_change(first, second):
    pairs = zip(outputs_of(first), outputs_of(second), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)


@pytest.mark.parametrize("build", [convnet, every_kind])
def test_outputs_change_by_rounding_only(build):
    """A compressed model computes what the model computed, but for the rounding of 8 bits."""
    model = build()
    before = outputs_of(model)
    no_adaptation = {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}
    _, quantized = compressed(model, {"algorithm": "quantization", "initializer": no_adaptation})
    scale = max(np.abs(y).max() for y in before)
    assert 0 < largest_change(model, quantized) < 0.15 * scale
    assert all(np.array_equal(a, b) for a, b in zip(before, outputs_of(model), strict=True))


@pytest.mark.parametrize("build", [convnet, every_kind])
def test_strip_gives_the_same_bits(build):
    """The stripped model computes what the compressed one does, with plain layers."""
    controller, quantized = compressed(build(), "quantization")
    stripped = controller.strip()
    assert largest_change(quantized, stripped) == 0
    assert not any("nncf" in type(layer).__module__ for layer in stripped.layers)


def test_the_layers_and_their_variables_are_shared():
    """Training the compressed model trains the variables of the given one."""
    model = compiled(convnet())
    _, quantized = compressed(model, "quantization")
    kernel = model.get_layer("conv1").kernel.numpy()
    quantized.fit(IMAGES, LABELS, epochs=1, verbose=0)
    assert np.abs(model.get_layer("conv1").kernel.numpy() - kernel).max() > 0


def test_compile_settings_carry_over():
    """The compressed model is compiled as the given one was, with an optimizer of its own."""
    model = compiled(convnet())
    _, quantized = compressed(model, "quantization")
    assert quantized.optimizer is not model.optimizer
    assert float(quantized.optimizer.learning_rate) == pytest.approx(0.05)
    history = quantized.fit(IMAGES, LABELS, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert "accuracy" in history


def test_a_keras_file_holds_the_compressed_model(tmp_path):
    """Save and load_model give a model that computes the same bits and can be stripped."""
    _, quantized = compressed(convnet(), "quantization")
    quantized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert largest_change(quantized, loaded) == 0
    assert largest_change(strip(loaded), loaded) == 0


def test_a_stripped_model_is_loaded_without_nncf(tmp_path):
    """A .keras file of a stripped model names no class of nncf."""
    controller, quantized = compressed(convnet(), "quantization")
    controller.strip().save(tmp_path / "plain.keras")
    import zipfile

    with zipfile.ZipFile(tmp_path / "plain.keras") as archive:
        assert b"nncf." not in archive.read("config.json").replace(b"nncf_model", b"")
    assert largest_change(keras.saving.load_model(tmp_path / "plain.keras"), quantized) == 0


def test_a_loop_of_ones_own_under_a_function():
    """Gradients reach weights and ranges in a custom loop with tf.function."""
    _, quantized = compressed(convnet(), "quantization")
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def gradients(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, quantized(x, training=True))
        return tape.gradient(loss, quantized.trainable_variables)

    found = gradients(IMAGES, LABELS)
    names = [v.path for v in quantized.trainable_variables]
    assert all(g is not None for g in found), names
    spans = [g for g, name in zip(found, names, strict=True) if name.endswith("scale")]
    assert spans
    assert any(float(tf.reduce_max(tf.abs(g))) > 0 for g in spans)


def test_switching_reaches_compiled_functions():
    """A quantizer switched off is the identity in a function that was compiled before."""
    model = convnet()
    controller, quantized = compressed(model, "quantization")
    run = tf.function(lambda x: quantized(x, training=False))
    assert np.abs(run(IMAGES) - outputs_of(model)[0]).max() > 0
    controller.disable_weight_quantization()
    controller.disable_activation_quantization()
    np.testing.assert_allclose(run(IMAGES), outputs_of(model)[0], atol=1e-5)


def test_a_layer_called_twice_has_one_quantizer_for_its_weight():
    """Calls of a shared layer are numbered, and its weight is quantized once."""
    controller, _ = compressed(convnet(), "quantization")
    weights = [i for i in controller.layout if i.op.weight]
    shared = [i for i in weights if "shared" in i.name]
    assert [len(i.points) for i in shared] == [2]
    assert len(weights) == 3


def test_a_subclassed_model_is_followed():
    """User's layers are followed inside; one with a variable of its own is compressed by layers."""
    model = Subclassed()
    data = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    before = model(data).numpy()
    controller, quantized = compressed(model, "quantization", data=data)
    names = [i.name for i in controller.layout]
    assert any("block" in name and "WEIGHT" in name for name in names)
    assert any("gain/hidden/Dense_0|WEIGHT" in name for name in names)
    assert any("gain/hidden/Dense_0|INPUT0" in name for name in names)
    change = np.abs(quantized(data, training=False).numpy() - before).max()
    assert 0 < change < 0.3 * np.abs(before).max()
    assert np.array_equal(controller.strip()(data).numpy(), quantized(data).numpy())


def test_what_cannot_be_followed_is_listed(caplog):
    """The log lists the layers that were not followed, with the reason."""
    model = Subclassed()
    data = np.ones((16, 8), "float32")
    model(data)
    with caplog.at_level("WARNING", logger="nncf"):
        compressed(model, "quantization", data=data)
    assert "Subclassed/gain: it has a variable of its own (gain)" in caplog.text


class Branching(keras.Model):
    """A model that leaves Keras for TensorFlow."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(4, name="first")
        self.second = keras.layers.Dense(3, name="second")

    def call(self, x):
        return self.second(tf.sin(self.first(x)))


def test_a_model_that_cannot_be_followed_is_compressed_layer_by_layer(caplog):
    """Weights and inputs of its layers are quantized though its graph is not known."""
    model = Branching()
    data = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    before = model(data).numpy()
    with caplog.at_level("WARNING", logger="nncf"):
        controller, quantized = compressed(model, "quantization", data=data)
    assert "Branching" in caplog.text
    kinds = sorted(i.name.rpartition("|")[2] for i in controller.layout)
    assert kinds == ["INPUT0", "INPUT0", "WEIGHT", "WEIGHT"]
    change = np.abs(quantized(data).numpy() - before).max()
    assert 0 < change < 0.1
    before = quantized(data).numpy()
    assert np.array_equal(controller.strip(do_copy=False)(data).numpy(), before)


def test_scopes_name_layers():
    """A plain layer name in ignored_scopes names all calls of the layer."""
    controller, _ = compressed(convnet(), "quantization", ignored_scopes=["shared"])
    points = [str(p) for i in controller.layout for p in i.points]
    assert not any("shared" in p and ("WEIGHT" in p or "INPUT" in p) for p in points)


def test_the_user_s_model_keeps_its_graph():
    """What a trace calls is forgotten: a model that was looked at is called as before."""
    model = every_kind()
    nested = model.get_layer("inner").layers[0]
    before = [len(layer._inbound_nodes) for layer in (*model.layers, nested)]
    capture(model, keras.KerasTensor((None, 12, 12, 3)))
    assert [len(layer._inbound_nodes) for layer in (*model.layers, nested)] == before


# ------------------------------------------------------------------------------ wrong input


def test_a_model_that_was_never_built():
    """The error says how to tell what the inputs are."""
    config = nncf.NNCFConfig.from_dict({"compression": {"algorithm": "quantization"}})
    with pytest.raises(ModelError, match="never built"):
        create_compressed_model(Subclassed(), config)


def test_input_info_builds_a_model_that_was_never_built():
    """input_info tells the shape of a subclassed model's input."""
    config = {
        "input_info": {"sample_size": [1, 8]},
        "compression": {"algorithm": "quantization"},
    }
    _, quantized = create_compressed_model(Subclassed(), config, dump_graphs=False)
    assert quantized.output_shape == (None, 5)


def test_input_info_that_contradicts_the_model():
    """A Keras model knows its inputs; another shape is an error."""
    with pytest.raises(ConfigError, match="remove input_info"):
        compressed(convnet(), "quantization", input_info={"sample_size": [1, 3, 12, 12]})


def test_a_compressed_model_is_refused():
    """Compressing twice is an error."""
    _, quantized = compressed(convnet(), "quantization")
    with pytest.raises(ModelError, match="already been compressed"):
        create_compressed_model(quantized, configuration("quantization"))
    with pytest.raises(NotCompressed):
        strip(convnet())


def test_options_for_pytorch_only_are_refused():
    """An option that Keras models do not have is named with its path."""
    precision = {"algorithm": "quantization", "initializer": {"precision": {"type": "hawq"}}}
    with pytest.raises(ConfigError, match=r"compression\[0\]\.initializer\.precision"):
        compressed(convnet(), precision)


def test_nan_in_the_data_leaves_the_model_as_it_was():
    """A failed call changes no variable of the model."""
    model = convnet()
    before = [v.numpy() for v in model.variables]
    with pytest.raises(DataError, match="NaN or infinity"):
        compressed(model, "quantization", data=np.full_like(IMAGES, np.nan))
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, model.variables, strict=True))


def test_data_of_another_shape():
    """The error shows what the data set yields."""
    with pytest.raises(DataError, match=r"an array \(8, 5\)"):
        compressed(convnet(), "quantization", data=np.ones((16, 5), "float32"))
