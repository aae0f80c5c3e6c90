# SPDX-License-Identifier: Apache-2.0
"""Accuracy-aware training of Keras models: by ``fit`` and by functions of one's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import nncf
from nncf.common.accuracy_aware_training import create_accuracy_aware_training_loop
from nncf.errors import CheckpointError, TrainingError
from nncf.tensorflow import (
    AdaptiveCompressionTrainingLoop,
    EarlyExitCompressionTrainingLoop,
    create_compressed_model,
    create_compression_callbacks,
)
from nncf.training.array_file import read_file, write_file
from tests.tensorflow_models import IMAGES, LABELS, compiled, convnet

DATA = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(8)
EARLY = {"mode": "early_exit", "params": {"maximal_absolute_accuracy_degradation": 0.0,
                                          "maximal_total_epochs": 4}}  # fmt: skip
ADAPTIVE = {
    "mode": "adaptive_compression_level",
    "params": {
        "maximal_absolute_accuracy_degradation": 0.5,
        "initial_training_phase_epochs": 2,
        "patience_epochs": 1,
        "initial_compression_rate_step": 0.2,
        "maximal_total_epochs": 6,
    },
}
SPARSE = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.2,
          "params": {"schedule": "multistep", "multistep_steps": [1],
                     "multistep_sparsity_levels": [0.2, 0.4]}}  # fmt: skip


def prepared(section, *algorithms, optimizer=None):
    """Return configuration, controller and compiled model."""
    config = nncf.NNCFConfig.from_dict(
        {"compression": list(algorithms), "accuracy_aware_training": section}
    )
    nncf.register_default_init_args(config, DATA, 8)
    model = compiled(convnet())
    if optimizer is not None:
        model.compile(optimizer, model.loss, metrics=["accuracy"])
    return config, *create_compressed_model(model, config, dump_graphs=False)


def fit(model, controller, config, log_dir, accuracy=0.2, **options):
    return model.accuracy_aware_fit(
        DATA,
        controller,
        nncf_config=config,
        callbacks=create_compression_callbacks(controller, log_tensorboard=False, log_text=False),
        initial_epoch=0,
        uncompressed_model_accuracy=accuracy,
        validation_data=DATA,
        log_dir=log_dir,
        verbose=False,
        **options,
    )


def test_early_exit_stops_when_the_goal_is_met(tmp_path):
    """A goal that the model meets at once needs no epoch; one out of reach takes them all."""
    config, controller, model = prepared(EARLY, {"algorithm": "quantization"})
    assert fit(model, controller, config, tmp_path, accuracy=0.0).compressed_accuracy >= 0
    assert controller.scheduler.current_epoch == -1
    config, controller, model = prepared(EARLY, {"algorithm": "quantization"})
    counted = []
    controller.scheduler.step = lambda: counted.append(controller.scheduler.current_epoch)
    found = fit(model, controller, config, tmp_path, accuracy=2.0)
    assert counted == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]  # three steps an epoch
    assert found.compressed_accuracy == pytest.approx(
        model.evaluate(DATA, return_dict=True, verbose=0)["accuracy"]
    )


@pytest.mark.parametrize("scheduled", [False, True])
def test_the_adaptive_loop_raises_the_rate(tmp_path, scheduled):
    """Where accuracy allows, sparsity rises above its schedule; the best model comes back."""
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9) if scheduled else 0.05
    config, controller, model = prepared(
        ADAPTIVE, SPARSE, {"algorithm": "quantization"}, optimizer=keras.optimizers.SGD(rate)
    )
    found = fit(model, controller, config, tmp_path, accuracy=0.6)
    assert controller.child_ctrls[0].sparsity_level > 0.4
    assert found.compression_rate > 0.3
    stripped = controller.strip()
    np.testing.assert_array_equal(stripped(IMAGES), model(IMAGES, training=False))
    assert list(tmp_path.rglob("attempts.json"))


class Stopped(Exception):
    """What a test raises in the middle of a run."""


class Stop(keras.callbacks.Callback):
    """Stops a run in its third epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2:
            raise Stopped


@pytest.mark.parametrize(
    "section", [EARLY, pytest.param(ADAPTIVE, marks=pytest.mark.slow)], ids=["early", "adaptive"]
)
def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path, section):
    """With resume=True the weights are those of a run that was never stopped."""
    algorithms = (SPARSE, {"algorithm": "quantization"})

    def run(folder, stop=None, **options):
        config, controller, model = prepared(section, *algorithms)
        callbacks = [stop] if stop else []
        model.accuracy_aware_fit(
            DATA, controller, config, callbacks, uncompressed_model_accuracy=0.6,
            validation_data=DATA, log_dir=folder, verbose=False, **options,
        )  # fmt: skip
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stop=Stop())
    resumed = run(tmp_path / "stopped", resume=True)
    for a, b in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_functions_of_ones_own(tmp_path):
    """The loop runs with functions and a Keras optimizer as it does for PyTorch."""
    config, controller, model = prepared(EARLY, {"algorithm": "quantization"})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train_epoch_fn(compression_ctrl, model, *, optimizer, epoch):
        for x, y in DATA:
            compression_ctrl.scheduler.step()
            with tf.GradientTape() as tape:
                total = loss(y, model(x, training=True)) + compression_ctrl.loss()
            gradients = tape.gradient(total, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
        assert epoch >= 0

    loop = create_accuracy_aware_training_loop(config, controller, 2.0, verbose=False)
    assert isinstance(loop, EarlyExitCompressionTrainingLoop)
    before = model.get_layer("conv1").layer.kernel.numpy()
    loop.run(
        model,
        train_epoch_fn,
        lambda model: float(np.mean(np.argmax(model(IMAGES), 1) == LABELS)),
        configure_optimizers_fn=lambda: (keras.optimizers.SGD(0.05), None),
        log_dir=tmp_path,
    )
    assert np.abs(model.get_layer("conv1").layer.kernel.numpy() - before).max() > 0
    assert AdaptiveCompressionTrainingLoop.mode == "adaptive_compression_level"


def test_what_is_missing_is_named(tmp_path):
    """Validation data, the accuracy before compression, a compiled model, and a metric."""
    config, controller, model = prepared(EARLY, {"algorithm": "quantization"})
    with pytest.raises(TrainingError, match="uncompressed_model_accuracy"):
        model.accuracy_aware_fit(DATA, controller, config, validation_data=DATA)
    with pytest.raises(TrainingError, match="validation_data"):
        model.accuracy_aware_fit(DATA, controller, config, uncompressed_model_accuracy=1.0)
    controller, plain = create_compressed_model(convnet(), config, dump_graphs=False)
    with pytest.raises(TrainingError, match="compile"):
        fit(plain, controller, config, tmp_path)
    plain.compile("sgd", model.loss)
    with pytest.raises(TrainingError, match="only a loss"):
        fit(plain, controller, config, tmp_path)


def test_a_file_of_another_model(tmp_path):
    """A run whose file has other variables is refused."""
    config, controller, model = prepared(EARLY, {"algorithm": "quantization"})
    fit(model, controller, config, tmp_path, accuracy=2.0)
    config, controller, other = prepared(
        EARLY, {"algorithm": "quantization", "ignored_scopes": ["head"]}
    )
    with pytest.raises(CheckpointError, match="do not fit"):
        fit(other, controller, config, tmp_path, accuracy=2.0, resume=True)


def test_a_file_of_arrays(tmp_path):
    """Nested state comes back equal, with its types; nothing is pickled."""
    state = {
        "a": [np.arange(3, dtype=np.int8), {"b": np.float32(1.5), "c": None}],
        "d": np.array(True),
        "e": tf.cast([1.5, 2.0], tf.bfloat16).numpy(),
    }
    write_file(tmp_path / "x.npz", state)
    found = read_file(tmp_path / "x.npz")
    np.testing.assert_array_equal(found["a"][0], state["a"][0])
    assert found["a"][0].dtype == np.int8
    assert found["a"][1] == {"b": 1.5, "c": None}
    assert found["d"].dtype == bool
    assert found["d"].shape == ()
    np.testing.assert_array_equal(found["e"].astype(float), [1.5, 2.0])
