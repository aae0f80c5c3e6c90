# SPDX-License-Identifier: Apache-2.0
"""Defaults and readings of the algorithms' options."""

import pytest

from nncf.algorithms import options_class
from nncf.algorithms.quantization import QuantizationOptions, RangeOptions, ScopedRangeOptions


def read(name, **section):
    """Return the options of an algorithm's section."""
    return options_class(name).read(section)


def test_quantization_defaults():
    """An empty quantization section gives the documented defaults."""
    options = QuantizationOptions.read({})
    assert (options.preset, options.overflow_fix) == (None, "enable")
    assert (options.quantize_inputs, options.quantize_outputs) == (True, False)
    assert (options.weights.bits, options.weights.mode, options.params) == (None, None, None)
    assert options.initializer.batchnorm_adaptation.num_bn_adaptation_samples == 2000
    assert not options.initializer.has("batchnorm_adaptation")
    (entry,) = options.initializer.ranges()
    assert (entry.num_init_samples, entry.type) == (256, None)
    assert (entry.params.min_percentile, entry.params.max_percentile) == (0.1, 99.9)


def test_ranges_have_two_forms():
    """One object is for all quantizers, entries of a list have scopes."""
    one = QuantizationOptions.read({"initializer": {"range": {"type": "min_max"}}})
    assert [type(entry) for entry in one.initializer.ranges()] == [RangeOptions]
    entries = [{"target_scopes": "a"}, {"ignored_scopes": ["a"]}]
    many = QuantizationOptions.read({"initializer": {"range": entries}})
    assert [type(entry) for entry in many.initializer.ranges()] == [ScopedRangeOptions] * 2
    assert many.initializer.range[0].target_scopes == ("a",)


@pytest.mark.parametrize("name", ["quantization", "binarization"])
def test_an_empty_staged_section_is_none(name):
    """Params switches the staged schedule on only when it says something."""
    assert read(name, params={}).params is None
    assert read(name, params={"base_wd": 0}).params.weights_quant_start_epoch == 1


def test_precision_defaults_differ_by_type():
    """Each way of choosing bit widths has its own defaults."""
    hawq = read("quantization", initializer={"precision": {"type": "hawq"}}).initializer.precision
    autoq = read("quantization", initializer={"precision": {"type": "autoq"}}).initializer.precision
    assert (hawq.iter_number, hawq.compression_ratio, hawq.bits) == (200, 1.5, (2, 4, 8))
    assert (autoq.iter_number, autoq.compression_ratio) == (0, 0.15)


def test_sparsity_defaults():
    """The schedules of the two sparsity algorithms start from the documented values."""
    magnitude = read("magnitude_sparsity").params
    assert (magnitude.schedule, magnitude.weight_importance) == ("polynomial", "normed_abs")
    assert (magnitude.sparsity_target, magnitude.power, magnitude.concave) == (0.5, 0.9, True)
    assert (magnitude.sparsity_target_epoch, magnitude.sparsity_freeze_epoch) == (90, 100)
    adaptive = read("rb_sparsity").params
    assert (adaptive.schedule, adaptive.patience) == ("exponential", 1)
    assert (adaptive.step, adaptive.eps) == (0.05, 0.03)


def test_pruning_defaults_follow_the_ranking():
    """The learned ranking prunes all layers unless told otherwise."""
    plain = read("filter_pruning").params
    assert (plain.schedule, plain.pruning_steps, plain.filter_importance) == (
        "exponential",
        100,
        "L2",
    )
    assert not plain.all_weights
    assert not plain.prune_first_conv
    learned = {"interlayer_ranking_type": "learned_ranking", "prune_first_conv": False}
    params = read("filter_pruning", params=learned).params
    assert params.all_weights
    assert params.prune_downsample_convs
    assert not params.prune_first_conv


def test_table_joins_the_forms_of_a_section():
    """Unions show each key once, with the defaults of all forms."""
    from nncf.options import option_table

    table = option_table(QuantizationOptions)
    assert table.count("`initializer.precision.iter_number`") == 1
    (line,) = [line for line in table.splitlines() if "precision.iter_number" in line]
    assert "| `200` or `0` |" in line
    assert line.endswith("| torch |")
    assert table.count("num_init_samples") == 2
    assert "`initializer.range[].target_scopes`" in table
    assert "Keys as in `scope_overrides.weights`." in table


def test_repr_shows_what_differs_from_the_defaults():
    """A repr is short: only what is not as by default."""
    options = QuantizationOptions.read({"weights": {"bits": 4}, "quantize_inputs": True})
    assert repr(options) == "QuantizationOptions(weights=QuantizerGroup(bits=4))"
