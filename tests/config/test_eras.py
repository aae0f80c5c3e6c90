# SPDX-License-Identifier: Apache-2.0
"""What earlier releases called otherwise gets today's name, with advice."""

import pytest

from nncf.config import NNCFConfig


def options(caplog, **config):
    """Return ``(RootOptions, messages)`` of a configuration."""
    caplog.clear()
    root = NNCFConfig.from_dict(config).options
    return root, caplog.messages


@pytest.mark.parametrize(("old", "new"), [(True, "disable"), (False, "enable")])
def test_saturation_fix_becomes_overflow_fix(old, new, caplog):
    """disable_saturation_fix is read as the overflow_fix that does the same."""
    section = {"algorithm": "quantization", "disable_saturation_fix": old}
    root, messages = options(caplog, compression=section)
    assert root.compression[0].overflow_fix == new
    assert messages == [
        (
            "compression.disable_saturation_fix is a key of earlier releases. "
            'Write "overflow_fix": "disable" for true, "enable" for false.'
        )
    ]


def test_todays_key_wins_over_the_old_one(caplog):
    """With both spellings given, today's counts."""
    params = {"weight_importance": "L1", "filter_importance": "L2", "schedule": "baseline"}
    root, messages = options(
        caplog, compression=[{"algorithm": "filter_pruning", "params": params}]
    )
    assert root.compression[0].params.filter_importance == "L2"
    assert messages[0].startswith("compression[0].params.weight_importance is a key of earlier")


def test_early_pruning_keeps_its_default_schedule(caplog):
    """A pruning section of release 2.0 or before keeps the schedule it was written for."""
    old = {"algorithm": "filter_pruning", "params": {"zero_grad": True}}
    root, messages = options(caplog, compression=old)
    assert root.compression[0].params.schedule == "baseline"
    assert any('"schedule": "baseline"' in message for message in messages)
    root, messages = options(caplog, compression={"algorithm": "filter_pruning"})
    assert (root.compression[0].params.schedule, messages) == ("exponential", [])


def test_alias_becomes_quantization(caplog):
    """experimental_quantization is quantization."""
    root, messages = options(caplog, compression={"algorithm": "experimental_quantization"})
    assert root.algorithm("quantization") is root.compression[0]
    assert messages == [('compression.algorithm = "experimental_quantization": write '
                        '"quantization" today.')]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "algorithm", "mode"),
    [
        (
            {"initial_training_phase_epochs": 1, "patience_epochs": 1},
            "rb_sparsity",
            "adaptive_compression_level",
        ),
        ({"maximal_total_epochs": 1}, "quantization", "early_exit"),
    ],
)
def test_accuracy_aware_without_mode(section, algorithm, mode, caplog):
    """An accuracy-aware section without mode gets the mode that its keys belong to."""
    section = {**section, "maximal_relative_accuracy_degradation": 2}
    root, messages = options(
        caplog, accuracy_aware_training=section, compression={"algorithm": algorithm}
    )
    assert root.accuracy_aware_training.mode == mode
    assert root.accuracy_aware_training.params.maximal_relative_accuracy_degradation == 2
    assert len(messages) == 1
    assert mode in messages[0]


def test_unknown_keys_of_open_sections_are_named(caplog):
    """In sections that used to be open an unknown key is dropped, with the nearest key."""
    ranges = {"type": "percentile", "params": {"min_percentil": 1}}
    section = {"algorithm": "quantization", "initializer": {"range": ranges}}
    root, messages = options(caplog, compression=section)
    assert root.compression[0].initializer.range.params.min_percentile == 0.1
    assert messages == [
        (
            "compression.initializer.range.params.min_percentil is not an option and does nothing. "
            'Nearest: "min_percentile", "max_percentile".'
        )
    ]


def test_precision_type_defaults_to_manual(caplog):
    """A precision section without type is manual; an empty one asks for nothing."""
    pairs = {"bitwidth_per_scope": [[4, "a"]]}
    for precision, expected in ((pairs, ((4, "a"),)), ({}, None)):
        section = {"algorithm": "quantization", "initializer": {"precision": precision}}
        root, messages = options(caplog, compression=section)
        found = root.compression[0].initializer.precision
        assert (found and found.bitwidth_per_scope) == expected
        assert messages == []


def test_keys_of_other_precision_types_have_no_effect(caplog):
    """The sections of the three precision types used to share all keys."""
    precision = {"type": "hawq", "warmup_iter_number": 3}
    section = {"algorithm": "quantization", "initializer": {"precision": precision}}
    _, messages = options(caplog, compression=section)
    path = "compression.initializer.precision.warmup_iter_number"
    assert messages == [f'{path} has no effect with type "hawq".']
