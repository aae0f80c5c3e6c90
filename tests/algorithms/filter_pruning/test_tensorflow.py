# SPDX-License-Identifier: Apache-2.0
"""Filter pruning of Keras models: masks, importance, levels, states, and what training sees."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers

import nncf
from nncf.algorithms.filter_pruning.scheme import ChannelMask
from nncf.algorithms.filter_pruning.tensorflow import MaskedChannels, filter_importance
from nncf.algorithms.filter_pruning.torch import MaskedChannels as MaskedChannelsOfTorch
from nncf.algorithms.filter_pruning.torch import filter_importance as importance_of_torch
from nncf.errors import ConfigError, DataError, ModelError
from nncf.graph.channels import Producer
from nncf.graph.multiplications import multiply_accumulates
from nncf.tensorflow.capture import capture
from tests.algorithms.filter_pruning.keras_networks import IMAGES, mobilenet, network, resnet
from tests.algorithms.filter_pruning.pruned import Residual, disturb
from tests.algorithms.filter_pruning.pruned import prune as prune_torch
from tests.tensorflow_models import compiled, compressed

DATA = np.random.default_rng(2).uniform(-1, 1, (24, 8, 8, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 5, 24)


def prune(model: Any, *others: Any, state: Any = None, **section: Any) -> Any:
    """Return controller and compressed model; all convolutions are pruned, to any number."""
    free = {"prune_first_conv": True, "prune_downsample_convs": True, "channel_multiple": 1}
    section["params"] = {**free, **section.get("params", {})}
    pruning = {"algorithm": "filter_pruning", **section}
    return compressed(model, pruning, *others, data=DATA, state=state)


def residual() -> Any:
    """Return the Keras twin of ``Residual``."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", name="stem")(image)
    x = layers.ReLU()(layers.BatchNormalization(epsilon=1e-5, name="norm")(x))
    y = layers.Conv2D(24, 3, padding="same", activation="relu", name="inner")(x)
    y = layers.Conv2D(16, 3, padding="same", name="outer")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="wide")(x)
    return keras.Model(image, layers.Dense(5, name="head")(layers.GlobalAveragePooling2D()(x)))


def twins() -> tuple[Any, Any]:
    """Return one network in PyTorch and in Keras, with the same weights."""
    torch.manual_seed(0)
    first, second = Residual().eval(), residual()
    disturb(first)
    values = {name: tensor.numpy() for name, tensor in first.state_dict().items()}
    for name in ("stem", "inner", "outer", "wide"):
        kernel = values[f"{name}.weight"].transpose(2, 3, 1, 0)
        second.get_layer(name).set_weights([kernel, values[f"{name}.bias"]])
    second.get_layer("head").set_weights([values["head.weight"].T, values["head.bias"]])
    of_norm = ("weight", "bias", "running_mean", "running_var")
    second.get_layer("norm").set_weights([values[f"norm.{name}"] for name in of_norm])
    return first, second


# ------------------------------------------------------------------------------ the same as PyTorch


@pytest.mark.parametrize("importance", ["L1", "L2", "geometric_median"])
@pytest.mark.parametrize("all_weights", [False, True])
def test_the_same_filters_go_as_in_pytorch(importance: str, all_weights: bool) -> None:
    """One network in both frameworks loses the same filters, and computes the same without them."""
    first, second = twins()
    params = {"filter_importance": importance, "all_weights": all_weights, "channel_multiple": 1}
    of_torch = prune_torch(first, pruning_init=0.5, params=params)
    of_keras, pruned = prune(second, pruning_init=0.5, params=params)
    assert removed_from(of_torch) == removed_from(of_keras) != {}
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = of_torch.model(images).numpy()
    np.testing.assert_allclose(pruned(IMAGES, training=False), expected, atol=1e-5)


def removed_from(controller: Any) -> Any:
    """Return the units that are gone, by number of their group."""
    return controller.child_ctrls[0].get_state()["removed"]


def test_costs_are_those_of_pytorch() -> None:
    """FLOPs, parameters and filters are counted alike in both layouts."""
    first, second = twins()
    of_torch = prune_torch(first, pruning_init=0.5, params={"channel_multiple": 1})
    of_keras, _ = prune(second, pruning_init=0.5)
    found = [c.statistics().filter_pruning.model_statistics for c in (of_torch, of_keras)]
    assert found[0].full == found[1].full
    assert found[0].current == found[1].current


@pytest.mark.parametrize("importance", ["L1", "L2", "geometric_median"])
@pytest.mark.parametrize("normalized", [False, True])
def test_importance_of_a_depthwise_kernel(importance: str, normalized: bool) -> None:
    """The two last axes of a depthwise kernel are one axis of filters, as PyTorch has them."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype("float32")
    other = torch.from_numpy(kernel.reshape(3, 3, 8).transpose(2, 0, 1)[:, None].copy())
    ours = Producer("", "", 2, np.arange(8))
    theirs = Producer("", "", 0, np.arange(8))
    found = filter_importance(keras.Variable(kernel), ours, importance, normalized=normalized)
    expected = importance_of_torch(other, theirs, importance, normalized=normalized)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("fill", ["zero", "mean", "statistics", "mean_square"])
@pytest.mark.parametrize("hidden", [1, 2, 3, 6])
def test_hidden_channels_are_filled_as_in_pytorch(fill: Any, hidden: int) -> None:
    """The op of both frameworks puts the same values in the place of hidden channels."""
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    scheme = ChannelMask((2,), fill)
    ours, theirs = MaskedChannels(scheme, x.shape), MaskedChannelsOfTorch(scheme, x.shape)
    mask = np.ones(8, "float32")
    mask[np.random.default_rng(1).permutation(8)[:hidden]] = 0
    ours.mask(2).assign(mask)
    theirs.mask(2).copy_(torch.from_numpy(mask))
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)), atol=1e-6)


def test_multiply_accumulates_of_depthwise_and_transposed_convolutions() -> None:
    """Products are counted from the weight's shape and the positions, in channels-last tensors."""
    image = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(image)
    x = layers.Conv2DTranspose(5, 2, strides=2, name="up")(x)
    x = layers.Dense(7, name="dense")(x)
    graph = capture(keras.Model(image, x), keras.KerasTensor((None, 8, 8, 4))).graph
    found = {key.split("/")[1]: macs for key, macs in multiply_accumulates(graph).items()}
    assert found == {"deep": 36 * 9 * 8, "up": 36 * 4 * 8 * 5, "dense": 144 * 35}


# ------------------------------------------------------------------------------ levels


def test_the_target_of_flops_is_reached() -> None:
    """With pruning_flops_target that share of the operations goes, and little more."""
    controller, _ = prune(
        network(mobilenet), params={"pruning_flops_target": 0.4, "schedule": "baseline"}
    )
    controller.scheduler.epoch_step()
    level = controller.statistics().filter_pruning.model_statistics.flops_pruning_level
    assert 0.4 <= level < 0.5
    assert controller.compression_rate == pytest.approx(level)


@pytest.mark.parametrize("schedule", ["baseline", "exponential", "exponential_with_bias"])
@pytest.mark.parametrize("all_weights", [False, True])
def test_schedules_lead_to_the_target(schedule: str, all_weights: bool) -> None:
    """The share of filters grows over the epochs up to the target, where the masks freeze."""
    params = {"schedule": schedule, "pruning_steps": 4, "pruning_target": 0.5}
    controller, _ = prune(network(resnet), params={**params, "all_weights": all_weights})
    levels = []
    for _ in range(5):
        controller.scheduler.epoch_step()
        levels.append(controller.statistics().filter_pruning.current_pruning_level)
    assert levels == sorted(levels)
    assert levels[-1] == pytest.approx(0.5, abs=0.02)
    assert controller.frozen


def test_setting_a_rate_prunes_at_once() -> None:
    """``compression_rate`` sets the masks and freezes them; statistics print tables."""
    controller, pruned = prune(network(resnet))
    before = pruned(IMAGES, training=False).numpy()
    controller.compression_rate = 0.5
    assert np.abs(pruned(IMAGES, training=False).numpy() - before).max() > 0.01
    text = controller.statistics().to_str()
    assert "| Functional/" in text
    assert "GFLOPs" in text
    assert controller.compression_rate == 0.5


def test_levels_of_single_groups() -> None:
    """A mapping prunes groups by number and leaves the others whole."""
    controller, _ = prune(network(resnet))
    controller.set_pruning_level({0: 0.5})
    assert controller.current_groupwise_pruning_level[0] == 0.5
    assert set(controller.current_groupwise_pruning_level.values()) == {0.0, 0.5}


def test_options_leave_layers_alone() -> None:
    """First, strided and ignored convolutions keep their filters."""
    pruning = {"algorithm": "filter_pruning", "params": {"channel_multiple": 4}}
    controller, _ = compressed(network(resnet), pruning, data=DATA)
    assert "it is a first convolution" in str(controller.groups)
    assert "it has a stride" in str(controller.groups)
    model = network(resnet)
    second = [layer.name for layer in model.layers if isinstance(layer, layers.Conv2D)][-2]
    pruning["params"] |= {"prune_first_conv": True}
    controller, _ = compressed(model, pruning, data=DATA, ignored_scopes=[second])
    assert f'ignored by the scope "{second}"' in str(controller.groups)
    assert "it is a first convolution" not in str(controller.groups)


def test_batch_norms_can_be_spared() -> None:
    """Without prune_batch_norms scale and shift of hidden channels stay until strip."""
    controller, _ = prune(network(resnet), pruning_init=0.5, params={"prune_batch_norms": False})
    masked = [name for name in controller.child_ctrls[0]._compressed.ops if "Batch" in name]
    assert masked == []
    assert controller.strip().count_params() < 10000


# ------------------------------------------------------------------------------ training


def test_hidden_filters_stay_hidden_in_training() -> None:
    """Training changes what is kept; what is hidden has no effect and no gradient."""
    controller, pruned = prune(compiled(network(resnet)), pruning_init=0.5)
    masks = controller.kept
    pruned.fit(DATA, LABELS, epochs=2, batch_size=8, verbose=0)
    assert np.array_equal(controller.kept, masks)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(pruned(IMAGES, training=True))
    kernel = next(v for v in pruned.trainable_variables if v.path.endswith("kernel"))
    change = np.abs(tape.gradient(loss, kernel)).sum((0, 1, 2))
    assert (change == 0).sum() == kernel.shape[-1] // 2
    stripped = controller.strip()
    np.testing.assert_allclose(
        stripped(IMAGES, training=False), pruned(IMAGES, training=False), atol=1e-5
    )


def test_batch_norms_are_adapted_when_asked_for() -> None:
    """set_pruning_level can refresh the moving statistics with the registered data."""
    model = network(resnet)
    controller, _ = prune(model)
    before = model.layers[2].moving_mean.numpy()
    controller.set_pruning_level(0.5, run_batchnorm_adaptation=True)
    assert np.abs(model.layers[2].moving_mean.numpy() - before).max() > 0


def test_a_failed_adaptation_changes_nothing() -> None:
    """NaN in the data puts the masks back."""
    model = network(resnet)
    pruning = {"algorithm": "filter_pruning", "params": {"channel_multiple": 1}}
    controller, _ = compressed(model, pruning, data=np.full_like(DATA, np.nan))
    with pytest.raises(DataError):
        controller.set_pruning_level(0.5, run_batchnorm_adaptation=True)
    assert controller.kept.all()


# ------------------------------------------------------------------------------ states


def test_the_state_restores_masks_and_level() -> None:
    """A compression state that went through JSON gives a fresh model the same masks."""
    controller, pruned = prune(network(resnet), pruning_init=0.3)
    controller.set_pruning_level(0.5)
    state = json.loads(json.dumps(controller.get_compression_state()))
    again, other = prune(network(resnet), state=state, pruning_init=0.3)
    assert np.array_equal(controller.kept, again.kept)
    assert again.level == 0.5
    np.testing.assert_array_equal(pruned(IMAGES, training=False), other(IMAGES, training=False))


def test_weights_files_hold_the_masks(tmp_path: Any) -> None:
    """``save_weights`` and ``load_weights`` carry the masks, which the controller reads."""
    controller, pruned = prune(network(mobilenet), pruning_init=0.5)
    pruned.save_weights(tmp_path / "model.weights.h5")
    fresh, other = prune(network(mobilenet))
    assert fresh.kept.all()
    other.load_weights(tmp_path / "model.weights.h5")
    assert np.array_equal(fresh.kept, controller.kept)


def test_a_keras_file_holds_the_masked_model(tmp_path: Any, caplog: Any) -> None:
    """A loaded model computes the same bits; strip keeps its channels, as zeros, and says so."""
    _, pruned = prune(network(mobilenet), pruning_init=0.5)
    pruned.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = pruned(IMAGES, training=False).numpy()
    np.testing.assert_array_equal(loaded(IMAGES, training=False), expected)
    with caplog.at_level("WARNING", logger="nncf"):
        stripped = nncf.tensorflow.strip(loaded)
    assert "loaded from a file" in caplog.text
    np.testing.assert_allclose(stripped(IMAGES, training=False), expected, atol=1e-6)


# ------------------------------------------------------------------------------ wrong input


def test_the_learned_ranking_is_refused() -> None:
    """Options for PyTorch models only are named with their path."""
    with pytest.raises(ConfigError, match=r"interlayer_ranking_type"):
        prune(network(resnet), params={"interlayer_ranking_type": "learned_ranking"})


def test_a_frozen_layer_is_refused() -> None:
    """What is pruned must be trained afterwards."""
    model = network(resnet)
    model.layers[1].trainable = False
    with pytest.raises(ModelError, match="must be trained after pruning"):
        prune(model)


def test_a_model_without_anything_to_prune() -> None:
    """The error names each layer with the reason why it keeps its channels."""
    image = keras.Input((8, 8, 3))
    x = layers.Lambda(lambda x: x * 2)(layers.Conv2D(8, 3)(image))
    model = keras.Model(image, layers.LSTM(4)(layers.Reshape((36, 8))(x)))
    with pytest.raises(ConfigError, match="nncf does not look inside Lambda"):
        prune(model)


def test_a_target_out_of_reach() -> None:
    """A share of operations that cannot go is refused with the most that can."""
    with pytest.raises(ConfigError, match="is the most"):
        prune(network(resnet), params={"pruning_flops_target": 0.99, "channel_multiple": 16})
