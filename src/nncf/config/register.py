# SPDX-License-Identifier: Apache-2.0
"""``register_default_init_args``: hand training data and functions to the initialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from nncf.config.nncf_config import NNCFConfig
from nncf.errors import ConfigError
from nncf.logging import nncf_logger
from nncf.resources import (
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

Config = TypeVar("Config", bound=NNCFConfig)


def call_criterion(outputs: Any, target: Any, criterion: Any) -> Any:
    """Return the loss of a batch: the default of ``criterion_fn``."""
    return criterion(outputs, target)


def register_default_init_args(  # noqa: PLR0913  # the signature that the documents promise
    nncf_config: Config,
    train_loader: Any = None,
    criterion: Any = None,
    criterion_fn: Callable[[Any, Any, Any], Any] | None = None,
    train_steps_fn: Callable[..., Any] | None = None,
    validate_fn: Callable[..., Any] | None = None,
    val_loader: Any = None,
    autoq_eval_fn: Callable[[Any, Any], float] | None = None,
    model_eval_fn: Callable[[Any], float] | None = None,
    distributed_callbacks: Any = None,
    execution_parameters: ExecutionParameters | None = None,
    legr_train_optimizer: Callable[..., Any] | None = None,
    device: Any = None,
    *,
    data_loader: Any = None,
    batch_size: int | None = None,
    teacher: Any = None,
) -> Config:
    """Register what initialisation may need, and return the same ``nncf_config``.

    ``train_loader`` is any iterable of batches: range initialisation and batch norm adaptation
    draw from it. With ``criterion`` (and ``criterion_fn(outputs, target, criterion)``, by
    default ``criterion(outputs, target)``) sensitivities can be measured; ``train_steps_fn``,
    ``validate_fn`` and ``val_loader`` serve the learned ranking of filters; ``autoq_eval_fn``
    judges bit widths, ``model_eval_fn`` a model. ``teacher`` is a model to learn from. ``device``
    None means the model's own.

    Keras data sets come as ``data_loader`` and ``batch_size``, also in second and third place.
    Calling it again replaces what was registered for the same purpose.

    Raises ConfigError when ``nncf_config`` is no NNCFConfig or the data cannot be iterated.
    """
    if not isinstance(nncf_config, NNCFConfig):
        raise ConfigError(
            f"register_default_init_args: expected an NNCFConfig first, found "
            f"{type(nncf_config).__name__}. Make one with NNCFConfig.from_dict(…)."
        )
    if isinstance(criterion, int):  # register_default_init_args(config, dataset, batch_size)
        criterion, batch_size = None, criterion
    loader = _checked_loader(train_loader if train_loader is not None else data_loader)
    structs: list[object] = [
        QuantizationRangeInitArgs(loader, device, batch_size),
        BNAdaptationInitArgs(loader, device, batch_size),
    ]
    if criterion is not None:
        criterion_fn = criterion_fn or call_criterion
        structs.append(QuantizationPrecisionInitArgs(criterion_fn, criterion, loader, device))
    if None not in (train_steps_fn, validate_fn, val_loader):
        assert train_steps_fn is not None
        assert validate_fn is not None
        structs.append(
            LeGRInitArgs(loader, train_steps_fn, val_loader, validate_fn, legr_train_optimizer)
        )
    if autoq_eval_fn is not None:
        judged = val_loader if val_loader is not None else loader
        structs.append(AutoQPrecisionInitArgs(judged, autoq_eval_fn))
    structs.extend(_functions(model_eval_fn, distributed_callbacks, execution_parameters, teacher))
    nncf_config.register_extra_structs(structs)
    return nncf_config


def _functions(
    model_eval_fn: Any, distributed_callbacks: Any, execution_parameters: Any, teacher: Any
) -> Iterator[object]:
    if teacher is not None:
        yield TeacherArgs(teacher)
    if model_eval_fn is not None:
        yield ModelEvaluationArgs(model_eval_fn)
    if isinstance(distributed_callbacks, DistributedCallbacksArgs):
        yield distributed_callbacks
    elif distributed_callbacks is not None:
        wrap_model, unwrap_model = distributed_callbacks
        yield DistributedCallbacksArgs(wrap_model, unwrap_model)
    if execution_parameters is not None:
        yield execution_parameters


def _checked_loader(loader: Any) -> Any:
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise ConfigError(
            f"register_default_init_args: the training data is {_described(loader)}, over which one "
            "cannot iterate. Expected a data loader, or any iterable of batches."
        )
    if isinstance(loader, Iterator):
        nncf_logger.warning(
            "register_default_init_args: the training data is an iterator, which can be read "
            "once only. Pass the loader itself, so that every initialisation sees the data."
        )
    return loader


def _described(loader: Any) -> str:
    return "None" if loader is None else f"of type {type(loader).__name__}"
