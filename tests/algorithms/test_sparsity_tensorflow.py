# SPDX-License-Identifier: Apache-2.0
"""Masks on the weights of Keras models: by size, learned, and kept; alone and with INT8."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from nncf.algorithms.magnitude_sparsity.mask import MagnitudeMask
from nncf.algorithms.magnitude_sparsity.tensorflow import MagnitudeWeightMask
from nncf.algorithms.magnitude_sparsity.torch import MagnitudeWeightMask as TorchMask
from nncf.errors import LevelError
from nncf.tensorflow import create_compression_callbacks
from tests.tensorflow_models import IMAGES, LABELS, compiled, compressed, convnet


def magnitude(**params):
    section = {"schedule": "multistep", "multistep_steps": [1], **params}
    section.setdefault("multistep_sparsity_levels", [0.3, 0.6])
    return {"algorithm": "magnitude_sparsity", "sparsity_init": 0.3, "params": section}


def fit(model, controller, epochs, first=0):
    callbacks = create_compression_callbacks(controller, log_tensorboard=False, log_text=False)
    return model.fit(
        IMAGES, LABELS, batch_size=8, shuffle=False, verbose=0,
        initial_epoch=first, epochs=epochs, callbacks=callbacks,
    )  # fmt: skip


@pytest.mark.parametrize("pattern", [None, "2:4"])
@pytest.mark.parametrize("importance", ["abs", "normed_abs"])
def test_both_backends_choose_the_same_weights(pattern, importance):
    """Masks of Keras and PyTorch drop the same elements of the same arrays."""
    random = np.random.default_rng(0)
    weights = [random.normal(size=(3, 3, 8, 5)), random.normal(size=(8, 6)) * 3]
    weights = [weight.astype("float32") for weight in weights]
    axes = [2, 0]
    level = 0.4
    ours = [
        MagnitudeWeightMask(MagnitudeMask(pattern, axis), w.shape)
        for w, axis in zip(weights, axes, strict=True)
    ]
    theirs = [
        TorchMask(MagnitudeMask(pattern, axis), w.shape)
        for w, axis in zip(weights, axes, strict=True)
    ]
    first = MagnitudeWeightMask.choose(ours, weights, level, importance=importance)
    tensors = [torch.tensor(w) for w in weights]
    second = TorchMask.choose(theirs, tensors, level, importance=importance)
    assert first == pytest.approx(second, rel=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.kept(), b.kept().numpy())


def test_the_schedule_makes_weights_zero():
    """Fit with our callbacks reaches the level; strip writes the zeros into plain layers."""
    controller, model = compressed(compiled(convnet()), magnitude())
    assert (
        controller.statistics().magnitude_sparsity.model_statistics.sparsity_level_for_layers
        == (pytest.approx(0.3, abs=0.01))
    )
    fit(model, controller, 2)
    found = controller.statistics().magnitude_sparsity
    assert found.model_statistics.sparsity_level_for_layers == pytest.approx(0.6, abs=0.01)
    assert controller.compression_stage().name == "FULLY_COMPRESSED"
    stripped = controller.strip()
    np.testing.assert_array_equal(stripped(IMAGES), model(IMAGES, training=False))
    kernels = [stripped.get_layer(name).kernel.numpy() for name in ("conv1", "shared", "head")]
    zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    assert zeros == pytest.approx(0.6, abs=0.01)


def test_an_n_of_m_pattern_lies_along_the_input_channels():
    """With "2:4" two of four neighbouring input channels of each filter are dropped."""
    section = {"algorithm": "magnitude_sparsity", "params": {"pattern": "2:4"}}
    controller, _ = compressed(convnet(), section)
    controller.set_sparsity_level(0.5)
    kernel = controller.strip().get_layer("shared").kernel.numpy()
    groups = np.moveaxis(kernel, 2, -1).reshape(-1, 4)
    assert ((groups != 0).sum(1) == 2).all()
    assert any(
        "3 of them" in skip.reason for skip in controller.child_ctrls[0]._compressed.layout.skipped
    )


def test_sparse_and_quantized():
    """50 % sparsity and INT8 in one layer: the zeros stay zeros on the grid."""
    section = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5}
    controller, model = compressed(compiled(convnet()), section, "quantization")
    fit(model, controller, 1)
    stripped = controller.strip()
    np.testing.assert_array_equal(stripped(IMAGES), model(IMAGES, training=False))
    kernel = stripped.get_layer("shared").kernel.numpy()
    assert (kernel == 0).mean() > 0.4


def test_a_level_out_of_reach():
    """A level of one is refused, and the masks stay."""
    controller, _ = compressed(convnet(), magnitude())
    with pytest.raises(LevelError):
        controller.set_sparsity_level(1.0)


def test_const_sparsity_keeps_zeros():
    """Weights that are zero when training starts are zero afterwards."""
    model = compiled(convnet())
    kernel = model.get_layer("shared").kernel
    kernel.assign(np.where(np.abs(kernel) > 0.1, kernel, 0))
    zeros = kernel.numpy() == 0
    controller, sparse = compressed(model, "const_sparsity")
    fit(sparse, controller, 2)
    after = controller.strip().get_layer("shared").kernel.numpy()
    assert zeros.any()
    assert (after[zeros] == 0).all()
    assert (after[~zeros] != 0).all()


def rb(**params):
    section = {"schedule": "exponential", "sparsity_target": 0.5, "sparsity_target_epoch": 3,
               "sparsity_freeze_epoch": 100, **params}  # fmt: skip
    return {"algorithm": "rb_sparsity", "sparsity_init": 0.05, "params": section}


def test_fit_pulls_learned_masks_to_their_level():
    """Fit adds the loss of RB sparsity, which evaluation leaves out, and masks begin to drop."""
    model = convnet()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss)
    controller, sparse = compressed(model, rb())
    history = fit(sparse, controller, 30).history["loss"]
    assert max(history) > 50  # the square of half the weights over 0.05 is 100
    assert sparse.evaluate(IMAGES, LABELS, verbose=0) < 5
    assert controller.child_ctrls[0].current_sparsity > 0.3
    stripped = controller.strip()
    np.testing.assert_array_equal(stripped(IMAGES), sparse(IMAGES, training=False))


def test_a_compiled_loss_follows_level_and_freeze():
    """The loss in a function that was compiled before sees a new level, and freezing."""
    controller, sparse = compressed(compiled(convnet()), rb())
    loss = tf.function(controller.loss)
    low = float(loss())
    controller.set_sparsity_level(0.9)
    assert float(loss()) > low
    controller.freeze()
    assert float(loss()) == 0
    assert np.array_equal(sparse(IMAGES, training=True), sparse(IMAGES, training=True))


def test_masks_are_drawn_in_training_only():
    """Two training calls see different masks, two in evaluation the same."""
    _, sparse = compressed(convnet(), rb())
    for variable in sparse.trainable_variables:
        if variable.path.endswith("logits"):
            variable.assign(tf.zeros_like(variable))
    evaluated = [sparse(IMAGES, training=False) for _ in range(2)]
    np.testing.assert_array_equal(*evaluated)
    drawn = [sparse(IMAGES, training=True).numpy() for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 0


@pytest.mark.parametrize("algorithm", [magnitude(), rb()])
def test_bit_exact_resume_in_the_middle_of_a_schedule(algorithm, tmp_path):
    """Masks, logits, keys and levels come back: the run goes on as if it had not stopped."""
    controller, whole = compressed(compiled(convnet()), algorithm)
    fit(whole, controller, 4)
    keras.utils.set_random_seed(0)
    first, part = compressed(compiled(convnet()), algorithm)
    fit(part, first, 2)
    path = tf.train.Checkpoint(model=part).save(tmp_path / "run")
    second, resumed = compressed(
        compiled(convnet()), algorithm, state=first.get_compression_state()
    )
    resumed.optimizer.build(resumed.trainable_variables)
    tf.train.Checkpoint(model=resumed).restore(path).assert_existing_objects_matched()
    fit(resumed, second, 4, first=2)
    for a, b in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_a_keras_file_holds_masks(tmp_path):
    """A model with masks is saved and loaded as any other."""
    _, sparse = compressed(convnet(), magnitude(), "quantization")
    sparse.save(tmp_path / "sparse.keras")
    loaded = keras.saving.load_model(tmp_path / "sparse.keras")
    np.testing.assert_array_equal(loaded(IMAGES), sparse(IMAGES))
