# SPDX-License-Identifier: Apache-2.0
"""The quantizer for Keras against the formula in NumPy, and its ranges against PyTorch's."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from nncf.algorithms.quantization import formula
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.tensorflow import FakeQuantizer
from nncf.compression.calibration import Calibration, Recipe, RoundingGrid
from nncf.errors import ConfigError, DataError
from nncf.tensorflow.statistics import RangeCollector
from nncf.torch.statistics import RangeCollector as TorchCollector
from tests.quantizers import SCHEMES
from tests.tensorflow_models import compressed, convnet

X = np.random.default_rng(0).normal(0, 0.8, (8, 5, 3)).astype("float32")


def grid_of(quantizer, scheme):
    """Return the formula's grid for a quantizer's parameters."""
    span = quantizer.span.numpy().astype(np.float64)
    span = np.exp(span) if scheme.logarithm_scale else span
    if scheme.mode == "symmetric":
        return formula.symmetric_grid(scheme, span, signed=quantizer.is_signed)
    return formula.asymmetric_grid(scheme, quantizer.input_low.numpy(), span)


def made(scheme, shape=(1,), low=-1.0, high=1.1):
    quantizer = FakeQuantizer(scheme, shape)
    quantizer.set_range(np.float32(low), np.float32(high))
    return quantizer


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_values_and_gradients_are_those_of_the_formula(scheme, weight):
    """Outputs lie within float noise of the formula's, gradients too, but for ties."""
    scheme = replace(scheme, weight=weight)
    quantizer = made(scheme, low=0.0 if scheme.signed is False else -1.0)
    grid = grid_of(quantizer, scheme)
    # away from the middle between two points, where the two ways of rounding may differ
    places = X.astype(np.float64) / grid.step
    x = np.where(np.abs(places - np.floor(places) - 0.5) < 1e-3, 0.0, X).astype("float32")
    variable = tf.Variable(x)
    upstream = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    with tf.GradientTape() as tape:
        y = quantizer(variable)
        loss = tf.reduce_sum(y * upstream)
    np.testing.assert_allclose(y, formula.quantize(x, grid), atol=2e-6)
    learned = [quantizer.span.value]
    learned += [quantizer.input_low.value] if scheme.mode == "asymmetric" else []
    found = tape.gradient(loss, [variable, *learned])
    expected = formula.gradients(upstream, x, grid, symmetric=scheme.mode == "symmetric")
    np.testing.assert_allclose(found[0], expected.x, atol=1e-6)
    factor = scheme.lr_multiplier or 1.0
    factor *= float(np.exp(quantizer.span.numpy()[0])) if scheme.logarithm_scale else 1.0
    np.testing.assert_allclose(found[1], expected.span * factor, rtol=1e-3, atol=1e-4)
    if scheme.mode == "asymmetric":
        np.testing.assert_allclose(found[2], expected.low, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_range_for_each_channel(axis):
    """Each channel has the grid of its own range, along any axis; native() gives the same bits."""
    scheme = Scheme(
        per_channel=True, channel_axis=axis, signed=True, narrow_range=True, weight=True
    )
    shape = tuple(n if place == axis else 1 for place, n in enumerate(X.shape))
    ends = np.linspace(0.5, 1.5, X.shape[axis]).reshape(shape)
    quantizer = made(scheme, shape, low=-ends, high=ends)
    y = quantizer(X).numpy()
    np.testing.assert_allclose(y, formula.quantize(X, grid_of(quantizer, scheme)), atol=1e-6)
    np.testing.assert_allclose(quantizer.native().values(y), y, atol=1e-6)


@pytest.mark.parametrize(
    "scheme", [s for s in SCHEMES if s.bits > 1 and not s.logarithm_scale], ids=str
)
def test_the_native_form_computes_the_same(scheme):
    """An activation's quantizer and its native form give the same bits."""
    if scheme.half_range:  # weights only; a weight is on its grid already
        scheme = replace(scheme, weight=True)
    quantizer = made(scheme, low=0.0 if scheme.signed is False else -1.0)
    y = quantizer(X)
    native = quantizer.native().values(y if scheme.half_range else tf.constant(X))
    np.testing.assert_allclose(native, y, atol=1e-7 if not scheme.half_range else 1e-6)


RECIPES = {
    "extremes": Recipe("extremes", "batch"),
    "samples": Recipe("extremes", "sample", average_low=True, average_high=True),
    "percentiles": Recipe("percentiles", "all", percentiles=(1.0, 99.0)),
    "mean_percentiles": Recipe("percentiles", "batch", True, True, percentiles=(5.0, 95.0)),
    "three_sigma": Recipe("three_sigma", "all"),
    "least_error": Recipe("least_error", "all", grid=RoundingGrid((0, 15), (-8, 7))),
    "least_error_both_ends": Recipe("least_error", "all", grid=RoundingGrid((0, 15), None)),
}


@pytest.mark.parametrize("axis", [None, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_ranges_are_those_of_the_other_backend(name, axis):
    """Both collectors give the same ends for the same batches."""
    recipe = RECIPES[name]
    if recipe.per == "sample" and axis is not None:
        pytest.skip("statistics of samples are per tensor")
    wish = Calibration(recipe, samples=16, channel_axis=axis, rank=3)
    ours, theirs = RangeCollector(wish), TorchCollector(wish)
    random = np.random.default_rng(0)
    for _ in range(2):
        batch = np.maximum(random.normal(0.3, 1, (8, 6, 4)), -0.4).astype("float32")
        for collector, value in ((ours, batch), (theirs, torch.tensor(batch))):
            collector.start(8)
            collector(value)
    for a, b in zip(ours.result(), theirs.result(), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)


def test_a_range_that_cannot_be_set():
    """NaN, shapes that do not fit and ends in the wrong order are refused."""
    quantizer = FakeQuantizer(Scheme())
    for low, high in ((np.nan, 1.0), (2.0, 1.0), (np.zeros(3), np.ones(3))):
        with pytest.raises(DataError):
            quantizer.set_range(low, high)


def test_an_empty_channel_takes_the_largest_range():
    """A channel of zeros can be trained, and so can a tensor of zeros."""
    scheme = Scheme(per_channel=True, channel_axis=0, weight=True, signed=True)
    quantizer = made(scheme, (3, 1), low=np.zeros((3, 1)), high=np.array([[0.0], [2.0], [1.0]]))
    np.testing.assert_array_equal(quantizer.span.numpy().ravel(), [2, 2, 1])
    assert made(Scheme(), low=0.0, high=0.0).span.numpy() == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_back_in_its_dtype(dtype):
    """Activations in half precision are rounded in float32."""
    y = made(Scheme(signed=True))(tf.cast(X, dtype))
    assert y.dtype == tf.as_dtype(dtype)


def test_mixed_precision_models():
    """A model under the policy mixed_bfloat16 is compressed and trains."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        controller, quantized = compressed(convnet(), "quantization")
        assert quantized(np.zeros((1, 12, 12, 3), "float32"), training=True).dtype == tf.bfloat16
        assert len(controller.layout) > 3
    finally:
        keras.config.set_dtype_policy("float32")


def test_one_bit_is_for_pytorch():
    """One bit is refused with the name of the quantizer."""
    section = {"algorithm": "quantization", "weights": {"bits": 1}}
    with pytest.raises(ConfigError, match="one bit"):
        compressed(convnet(), section, target_device="TRIAL")


@pytest.mark.parametrize(
    "section",
    [
        {"weights": {"bits": 4}, "activations": {"bits": 4}},
        {"preset": "mixed", "weights": {"mode": "asymmetric"}},
        {"activations": {"per_channel": True}},
        {"initializer": {"range": {"type": "percentile", "num_init_samples": 16}}},
        {"scope_overrides": {"weights": {"head": {"bits": 8, "mode": "asymmetric"}}}},
        {"weights": {"logarithm_scale": True}},
        {"compression_lr_multiplier": 0.1},
        {"quantize_inputs": False, "quantize_outputs": True},
        {"overflow_fix": "disable"},
        {"params": {"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 2}},
    ],
    ids=str,
)
def test_every_option_runs(section):
    """Layout, initialisation and strip go through for each kind of setting."""
    config = {"algorithm": "quantization", **section}
    controller, quantized = compressed(convnet(), config, target_device="TRIAL")
    x = np.random.default_rng(0).normal(size=(4, 12, 12, 3)).astype("float32")
    outputs = quantized(x, training=False)
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(controller.strip()(x, training=False), outputs)
