# SPDX-License-Identifier: Apache-2.0
"""NNCFConfig is a dict with a checked view and with resources that are never copied."""

import copy
import pickle

import pytest

from nncf.config import NNCFConfig
from nncf.errors import ConfigError
from nncf.resources import BNAdaptationInitArgs, ModelEvaluationArgs, QuantizationRangeInitArgs

CONFIG = {
    "input_info": {"sample_size": [1, 3, 8, 8]},
    "compression": [{"algorithm": "quantization", "weights": {"bits": 8}}],
    "epochs": 3,
}


def test_it_is_a_dict_with_the_users_keys():
    """A configuration is a dict and keeps the keys of the training script."""
    config = NNCFConfig.from_dict(CONFIG)
    assert isinstance(config, dict)
    assert config == CONFIG
    assert config["epochs"] == 3
    config.update({"lr": 0.1})
    config["compression"][0]["weights"]["bits"] = 4
    assert CONFIG["compression"][0]["weights"]["bits"] == 8


def test_the_constructor_does_not_check_but_options_do():
    """NNCFConfig(…) takes anything; reading its options checks it as it is then."""
    config = NNCFConfig({"compression": {"algorithm": "quantization", "preset": "x"}})
    with pytest.raises(ConfigError, match="preset"):
        _ = config.options
    config["compression"]["preset"] = "mixed"
    assert config.options.compression[0].preset == "mixed"
    config["compression"]["preset"] = "performance"
    assert config.options.compression[0].preset == "performance"


def test_an_unchanged_config_is_checked_and_remarked_once(caplog):
    """Reading options again gives the same object and says nothing again."""
    section = {"algorithm": "quantization", "disable_saturation_fix": True}
    config = NNCFConfig.from_dict({"compression": section})
    assert len(caplog.messages) == 1
    assert config.options is config.options
    assert len(caplog.messages) == 1


def test_options_are_frozen():
    """Options cannot be changed by accident."""
    options = NNCFConfig.from_dict(CONFIG).options
    with pytest.raises(ValueError, match="frozen"):
        options.compression[0].preset = "mixed"


def test_values_that_are_no_json_survive():
    """Objects that a script keeps in its configuration are shared, not copied."""
    thing = object()
    assert NNCFConfig.from_dict({"logger": thing})["logger"] is thing


class Unpicklable:
    """A loader that can be neither copied nor pickled."""

    def __iter__(self):
        return iter([])

    def __reduce_ex__(self, protocol):
        raise TypeError("copied or pickled")


def test_copies_share_the_loaders():
    """copy, deepcopy and the constructor keep the resources and do not copy loaders."""
    config = NNCFConfig.from_dict(CONFIG)
    loader = Unpicklable()
    config.register_extra_structs([QuantizationRangeInitArgs(loader)])
    for other in (
        copy.deepcopy(config),
        copy.copy(config),
        config.copy(),
        NNCFConfig(config),
        NNCFConfig.from_dict(config),
    ):
        assert type(other) is NNCFConfig
        assert other == config
        assert other.get_extra_struct(QuantizationRangeInitArgs).data_loader is loader
    deep = copy.deepcopy(config)
    deep.register_extra_structs([BNAdaptationInitArgs(loader)])
    deep["compression"][0]["weights"]["bits"] = 4
    assert not config.has_extra_struct(BNAdaptationInitArgs)
    assert config["compression"][0]["weights"]["bits"] == 8


def test_pickle_keeps_dict_and_structs():
    """A pickled configuration comes back with its structs."""
    config = NNCFConfig.from_dict(CONFIG)
    config.register_extra_structs([QuantizationRangeInitArgs([1, 2], "cpu")])
    again = pickle.loads(pickle.dumps(config))
    assert type(again) is NNCFConfig
    assert again == config
    assert again.options == config.options
    assert again.get_extra_struct(QuantizationRangeInitArgs).data_loader == [1, 2]


def test_extra_structs():
    """Structs are found by class, replaced by a second one, and missed with KeyError."""
    config = NNCFConfig()
    with pytest.raises(KeyError, match="ModelEvaluationArgs"):
        config.get_extra_struct(ModelEvaluationArgs)
    config.register_extra_structs([ModelEvaluationArgs(len)])
    config.register_extra_structs([ModelEvaluationArgs(abs)])
    assert config.get_extra_struct(ModelEvaluationArgs).eval_fn is abs
    assert len(config.get_all_extra_structs_for_copy()) == 1
    assert config.has_extra_struct(ModelEvaluationArgs)


def test_learning_rate_multiplier_of_the_algorithm_wins():
    """The global multiplier holds for algorithms that give none of their own."""
    config = NNCFConfig.from_dict(
        {
            "compression_lr_multiplier": 10,
            "compression": [
                {"algorithm": "quantization"},
                {"algorithm": "rb_sparsity", "compression_lr_multiplier": 0.5},
                {"algorithm": "filter_pruning"},
            ],
        }
    )
    found = [
        getattr(item, "compression_lr_multiplier", None) for item in config.options.compression
    ]
    assert found == [10, 0.5, None]
    value = config.get_redefinable_global_param_value_for_algo
    assert value("compression_lr_multiplier", "quantization") == 10
    assert value("compression_lr_multiplier", "rb_sparsity") == 0.5
    assert value("compression_lr_multiplier", "filter_pruning") == 10
    assert value("nothing", "quantization") is None


def test_input_info_and_scopes_have_one_form():
    """An object or a list, a string or a list: the typed view always holds tuples."""
    one = NNCFConfig.from_dict(
        {"input_info": {"sample_size": [1, 2.0]}, "ignored_scopes": "a", "target_scopes": ["b"]}
    ).options
    assert [item.sample_size for item in one.input_info] == [(1, 2)]
    assert (one.ignored_scopes, one.target_scopes) == (("a",), ("b",))
    assert NNCFConfig.from_dict({}).options.input_info == ()


def test_validate_and_from_dict_refuse():
    """Validate and from_dict raise ConfigError, which is a ValueError too."""
    for call in (NNCFConfig.validate, NNCFConfig.from_dict):
        with pytest.raises(ValueError, match=r"^target_device = 5: expected one of "):
            call({"target_device": 5})
    NNCFConfig.validate(CONFIG)
    with pytest.raises(ConfigError, match="expected a dict"):
        NNCFConfig.from_dict([1])
