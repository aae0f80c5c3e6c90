# SPDX-License-Identifier: Apache-2.0
"""Wrong configurations: what is wrong, where, and what is allowed, all in one message."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncf.config.reading import read_options
from nncf.errors import ConfigError


def wrong(**config):
    """Return the lines of the error that ``config`` gives."""
    with pytest.raises(ConfigError) as caught:
        read_options(config)
    return str(caught.value).splitlines()


def quantization(**section):
    """Return the error lines of a quantization section."""
    return wrong(compression=[{"algorithm": "quantization", **section}])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"weights": {"bits": 17}},
            "compression[0].weights.bits = 17: expected a whole number from 1 to 8.",
        ),
        (
            {"weights": {"bits": "8"}},
            'compression[0].weights.bits = "8": expected a whole number from 1 to 8.',
        ),
        (
            {"quantize_inputs": 1},
            "compression[0].quantize_inputs = 1: expected true or false.",
        ),
        (
            {"preset": "performence"},
            (
                'compression[0].preset = "performence": expected one of "performance", "mixed". '
                'Nearest: "performance".'
            ),
        ),
        (
            {"ignored_scopes": ["a", "{re}("]},
            (
                'compression[0].ignored_scopes[1] = "{re}(": not a valid regular expression: '
                "missing ), unterminated subpattern at position 0."
            ),
        ),
        (
            {"ignored_scopes": [3]},
            "compression[0].ignored_scopes[0] = 3: expected a string.",
        ),
        (
            {"initializer": {"range": {"num_init_samples": -1}}},
            "compression[0].initializer.range.num_init_samples = -1: expected a whole number ≥ 0.",
        ),
        (
            {"initializer": {"range": [{"num_init_samples": 4}]}},
            (
                "compression[0].initializer.range[0]: an entry of a list needs target_scopes or "
                'ignored_scopes, which say for which operations it is. Write "ignored_scopes": [] for '
                "all."
            ),
        ),
        (
            {"initializer": {"range": {"params": {"min_percentile": 60, "max_percentile": 40}}}},
            (
                "compression[0].initializer.range.params.min_percentile = 60: expected less than "
                "max_percentile, which is 40."
            ),
        ),
        (
            {"initializer": {"precision": {"type": "hawk"}}},
            (
                'compression[0].initializer.precision.type = "hawk": expected one of "hawq", "autoq", '
                '"manual". Nearest: "hawq".'
            ),
        ),
        (
            {"initializer": {"precision": {"bitwidth_per_scope": [[4, "a"], [9, "b"]]}}},
            (
                "compression[0].initializer.precision.bitwidth_per_scope[1][0] = 9: expected a whole "
                "number from 1 to 8."
            ),
        ),
        (
            {"scope_overrides": {"weights": {"Net/conv.1": {"mode": "sym"}}}},
            (
                'compression[0].scope_overrides.weights["Net/conv.1"].mode = "sym": expected one of '
                '"symmetric", "asymmetric". Nearest: "symmetric", "asymmetric".'
            ),
        ),
        (
            {"activations": {"unified_scale_ops": [["a"]]}},
            (
                "compression[0].activations.unified_scale_ops[0]: name at least two operations to be "
                "unified."
            ),
        ),
        (
            {"params": {"base_lr": 0}},
            "compression[0].params.base_lr = 0: expected a number > 0.",
        ),
    ],
)
def test_message(section, message):
    """A wrong value is named with its path, what is allowed, and the nearest valid name."""
    assert quantization(**section) == [message]


def test_unknown_key_names_the_nearest():
    """An unknown key is refused with the nearest key and all keys that are valid there."""
    (line,) = quantization(wieghts={})
    start = 'compression[0].wieghts: unknown key. Nearest: "weights". Keys here: '
    assert line.startswith(start)
    assert "quantize_inputs" in line


@pytest.mark.parametrize("many", [False, True])
def test_one_object_for_a_list_keeps_its_path(many):
    """Errors in a lone object say nothing of a list, errors in a list give the index."""
    bad = {"sample_size": [1], "type": None, "keywrd": "x"}
    lines = wrong(input_info=[bad] if many else bad)
    path = "input_info[0]" if many else "input_info"
    assert lines == [
        f'{path}.type = null: expected one of "float", "long".',
        (
            f'{path}.keywrd: unknown key. Nearest: "keyword". Keys here: sample_size, type, filler, '
            "keyword."
        ),
        "2 problems in the configuration.",
    ]


def test_all_errors_in_one_message():
    """Everything wrong in a file is told at once, then counted."""
    lines = wrong(
        log_dir=3,
        input_info=[{"sample_size": [1, 0]}, {"type": "float"}],
        accuracy_aware_training={"mode": "early_exit", "params": {"maximal_total_epochs": 1}},
        compression=[
            3,
            {"algorithm": "quantisation"},
            {},
            {"algorithm": "quantization", "wieghts": 1, "activations": {"bits": 0}},
        ],
    )
    paths = [line.split(" ")[0].rstrip(":") for line in lines]
    assert sorted(paths[:-1]) == sorted(
        [
            "log_dir",
            "input_info[0].sample_size[1]",
            "input_info[1].sample_size",
            "accuracy_aware_training.params",
            "compression[0]",
            "compression[1].algorithm",
            "compression[2].algorithm",
            "compression[3].wieghts",
            "compression[3].activations.bits",
        ]
    )
    assert lines[-1] == "9 problems in the configuration."


@pytest.mark.parametrize(
    ("algorithms", "root", "message"),
    [
        (
            [{"algorithm": "quantization"}, {"algorithm": "quantization"}],
            {},
            (
                'compression[1]: "quantization" is configured already at compression[0]; join the two '
                "sections."
            ),
        ),
        (
            {"algorithm": "quantization", "preset": "mixed"},
            {"target_device": "VPU"},
            (
                'compression.preset is given, but target_device "VPU" has no presets. Remove it, or '
                'write "mode" for weights and activations.'
            ),
        ),
        (
            {"algorithm": "knowledge_distillation", "type": "mse", "temperature": 2},
            {},
            (
                'compression.temperature is given, but type is "mse", which has none. Remove it, or '
                'write "type": "softmax".'
            ),
        ),
        (
            {"algorithm": "knowledge_distillation"},
            {},
            'compression.type: required key is missing. Expected one of "mse", "softmax".',
        ),
        (
            {
                "algorithm": "filter_pruning",
                "params": {"pruning_target": 0.3, "pruning_flops_target": 0.3},
            },
            {},
            (
                "compression.params.pruning_flops_target and pruning_target are both given: keep one "
                "of them, a share of operations or a share of filters."
            ),
        ),
        (
            {
                "algorithm": "filter_pruning",
                "params": {"interlayer_ranking_type": "learned_ranking", "all_weights": False},
            },
            {},
            (
                "compression.params.all_weights = false does not go with the learned ranking, which "
                "ranks all filters of the network together. Remove it, or write "
                '"interlayer_ranking_type": "unweighted_ranking".'
            ),
        ),
        (
            {
                "algorithm": "magnitude_sparsity",
                "params": {"schedule": "multistep", "multistep_steps": [5, 3]},
            },
            {},
            (
                "compression.params.multistep_sparsity_levels has 2 entries: expected 3, one more than "
                "multistep_steps, which has 2."
            ),
        ),
        (
            {"algorithm": "magnitude_sparsity", "params": {"schedule": "adaptive"}},
            {},
            (
                'compression.params.schedule = "adaptive": expected one of "polynomial", '
                '"exponential", "multistep".'
            ),
        ),
    ],
)
def test_rules_between_options(algorithms, root, message):
    """What must hold between options is checked, and the message says what to change."""
    assert message in wrong(compression=algorithms, **root)


ADAPTIVE = {
    "mode": "adaptive_compression_level",
    "params": {
        "maximal_relative_accuracy_degradation": 1,
        "initial_training_phase_epochs": 1,
        "patience_epochs": 1,
    },
}


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["quantization"], "needs an algorithm whose compression rate can be driven"),
        (["quantization"], '"quantization" with "weights": {"adaptive_bits": [8, 4, 2]}'),
        (["filter_pruning", "rb_sparsity"], "drives one algorithm"),
    ],
)
def test_adaptive_training_needs_one_driven_algorithm(names, part):
    """The adaptive loop is refused for quantization alone and for pruning with sparsity."""
    sections = [{"algorithm": name} for name in names]
    (line,) = wrong(accuracy_aware_training=ADAPTIVE, compression=sections)
    assert line.startswith('accuracy_aware_training.mode = "adaptive_compression_level" ')
    assert part in line


@pytest.mark.parametrize("given_drops", [0, 2])
def test_exactly_one_accuracy_drop(given_drops):
    """Both kinds of accuracy drop, or none, is an error."""
    drops = ["maximal_relative_accuracy_degradation", "maximal_absolute_accuracy_degradation"]
    params = {"maximal_total_epochs": 1} | dict.fromkeys(drops[:given_drops], 1)
    (line,) = wrong(accuracy_aware_training={"mode": "early_exit", "params": params})
    assert line.startswith("accuracy_aware_training.params: ")
    assert all(name in line for name in drops)


@pytest.mark.parametrize("name", ["movement_sparsity", "bootstrapNAS"])
def test_not_offered(name):
    """Experiments of earlier releases are refused with a reason and a way out."""
    (line,) = wrong(compression={"algorithm": name})
    assert line.startswith(f'compression.algorithm: "{name}" is not offered: it ')
    assert "filter_pruning" in line or "magnitude_sparsity" in line


def test_keys_without_effect_are_remarked():
    """Legal keys that do nothing in their company are named, not silently ignored."""
    params = {"schedule": "exponential", "power": 2, "sparsity_freeze_epoch": 1}
    reading = read_options({"compression": {"algorithm": "rb_sparsity", "params": params}})
    assert [str(remark) for remark in reading.remarks] == [
        'compression.params.power has no effect: it is read only with schedule "polynomial".',
        (
            "compression.params.sparsity_freeze_epoch = 1 comes before sparsity_target_epoch = 90: "
            "the target will not be reached."
        ),
    ]


def test_misspelled_top_level_key_is_remarked():
    """Top-level keys are free, but one that looks like ours is pointed out."""
    reading = read_options({"target_devise": "GPU", "model": "x", "dataset": "y", 3: 4})
    assert [str(remark) for remark in reading.remarks] == [
        'target_devise is no key of the configuration. If you mean "target_device", write that.'
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
keys = st.sampled_from(
    ["algorithm", "weights", "initializer", "range", "params", "precision", "type", "bits"]
    + ["scope_overrides", "activations", "unified_scale_ops", "ignored_scopes", "schedule"]
    + ["batchnorm_adaptation", "bitwidth_per_scope", "quantization", "magnitude_sparsity"]
)
sections = st.recursive(
    json_values | keys,
    lambda inner: st.dictionaries(keys, inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(
    section=st.dictionaries(keys, sections, max_size=3),
    name=st.sampled_from(["quantization", "magnitude_sparsity", "filter_pruning", "binarization"]),
    top=st.dictionaries(
        st.sampled_from(["input_info", "target_device", "accuracy_aware_training", "log_dir"]),
        sections,
        max_size=2,
    ),
)
def test_any_json_is_read_or_refused_in_words(section, name, top):
    """Whatever JSON comes, the answer is options or a ConfigError without pydantic's words."""
    config = {**top, "compression": [{**section, "algorithm": name}]}
    try:
        read_options(config)
        message = ""
    except ConfigError as error:
        message = str(error)
    for words in ("validation error", "Input should", "another value"):
        assert words not in message


@pytest.mark.parametrize("first", ["rb_sparsity", "const_sparsity"])
def test_two_algorithms_of_one_role_are_refused(first):
    """Two algorithms that decide the same thing are named, with the reason."""
    (line,) = wrong(compression=[{"algorithm": first}, {"algorithm": "magnitude_sparsity"}])
    assert line.startswith('compression[1]: "magnitude_sparsity" decides which single weights are ')
    assert f'so does "{first}"' in line
