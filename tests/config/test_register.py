# SPDX-License-Identifier: Apache-2.0
"""register_default_init_args registers what was given, and may be called again."""

import pytest

from nncf.common.initialization.dataloader import NNCFDataLoader
from nncf.config import NNCFConfig, register_default_init_args
from nncf.config.structures import (
    AutoQPrecisionInitArgs,
    BNAdaptationInitArgs,
    DistributedCallbacksArgs,
    ExecutionParameters,
    LeGRInitArgs,
    ModelEvaluationArgs,
    QuantizationPrecisionInitArgs,
    QuantizationRangeInitArgs,
    TeacherArgs,
)
from nncf.errors import ConfigError

LOADER = [([1.0], 0)]


def steps(loader, model, optimizer, compression_ctrl, steps):
    """Stand for a function that trains some steps."""


def judge(model, loader=None):
    """Stand for a function that validates."""
    return 0.5


def test_a_loader_alone():
    """The loader serves ranges and batch norm; nothing else is registered."""
    config = NNCFConfig()
    assert register_default_init_args(config, LOADER, device="cpu") is config
    assert config.get_extra_struct(QuantizationRangeInitArgs) == QuantizationRangeInitArgs(
        LOADER, "cpu"
    )
    assert config.get_extra_struct(BNAdaptationInitArgs).data_loader is LOADER
    assert len(config.resources) == 2


def test_everything_is_registered():
    """Every documented argument reaches its struct."""
    validation = [([2.0], 1)]
    execution = ExecutionParameters(cpu_only=True)
    config = register_default_init_args(
        NNCFConfig(),
        LOADER,
        criterion=max,
        criterion_fn=lambda outputs, target, criterion: criterion(outputs, target) + 1,
        train_steps_fn=steps,
        validate_fn=judge,
        val_loader=validation,
        autoq_eval_fn=judge,
        model_eval_fn=judge,
        distributed_callbacks=(list, tuple),
        execution_parameters=execution,
        legr_train_optimizer=dict,
        device="cpu",
        teacher=judge,
    )
    precision = config.get_extra_struct(QuantizationPrecisionInitArgs)
    assert precision.criterion_fn(2, 3, precision.criterion) == 4
    legr = config.get_extra_struct(LeGRInitArgs)
    assert legr == LeGRInitArgs(LOADER, steps, validation, judge, dict)
    assert config.get_extra_struct(AutoQPrecisionInitArgs).data_loader is validation
    assert config.get_extra_struct(ModelEvaluationArgs).eval_fn is judge
    assert config.get_extra_struct(DistributedCallbacksArgs).unwrap_model is tuple
    assert config.get_extra_struct(ExecutionParameters) is execution
    assert config.get_extra_struct(TeacherArgs).model is judge


def test_the_default_criterion_function_calls_the_criterion():
    """Without criterion_fn the criterion gets outputs and target; it may come third."""
    config = register_default_init_args(NNCFConfig(), LOADER, max)
    precision = config.get_extra_struct(QuantizationPrecisionInitArgs)
    assert precision.criterion_fn(2, 3, precision.criterion) == 3


def test_a_second_call_replaces():
    """Calling it again with another loader is fine."""
    config = register_default_init_args(NNCFConfig(), LOADER)
    other = [([5.0], 1)]
    register_default_init_args(config, other)
    assert config.get_extra_struct(QuantizationRangeInitArgs).data_loader is other


def test_the_form_for_keras():
    """data_loader and batch_size are accepted by name and by place."""
    named = register_default_init_args(NNCFConfig(), data_loader=LOADER, batch_size=4)
    placed = register_default_init_args(NNCFConfig(), LOADER, 4)
    for config in (named, placed):
        found = config.get_extra_struct(QuantizationRangeInitArgs)
        assert found == QuantizationRangeInitArgs(LOADER, None, 4)
        assert not config.has_extra_struct(QuantizationPrecisionInitArgs)


def test_wrong_arguments_are_explained():
    """A plain dict, no data and data that cannot be iterated are refused in words."""
    with pytest.raises(ConfigError, match=r"found dict\. Make one with NNCFConfig\.from_dict"):
        register_default_init_args({}, LOADER)
    for data in (None, 3):
        with pytest.raises(ConfigError, match="cannot iterate"):
            register_default_init_args(NNCFConfig(), data)


def test_an_iterator_is_remarked(caplog):
    """An iterator can be read once only, which is said."""
    register_default_init_args(NNCFConfig(), iter(LOADER))
    assert "once only" in caplog.text


def test_loaders_of_the_interface():
    """NNCFDataLoader asks for batch_size and __iter__."""

    class Loader(NNCFDataLoader):
        @property
        def batch_size(self):
            return 2

        def __iter__(self):
            yield [1, 2], {"mask": 0}

    assert next(iter(Loader())) == ([1, 2], {"mask": 0})
    with pytest.raises(TypeError):
        NNCFDataLoader()
