# SPDX-License-Identifier: Apache-2.0
"""Make the arguments of the captured forward: from ``input_info``, or from the data loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nncf.config import NNCFConfig
from nncf.config.structures import BNAdaptationInitArgs, QuantizationRangeInitArgs
from nncf.errors import ConfigError, DataError
from nncf.torch.calibration import same_random_streams
from nncf.torch.initialize import forward_arguments
from nncf.torch.structure import map_tensors

_DTYPES = {"float": torch.float32, "long": torch.long}


def example_arguments(
    model: nn.Module, config: NNCFConfig
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` for one forward on the model's device.

    ``input_info`` gives shapes, types and fillers. Without it the first batch of the registered
    data loader is used. Raises ConfigError when there is neither.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    infos = config.options.input_info
    if not infos:
        return _from_loader(model, config, device)
    args, kwargs = [], {}
    for info in infos:
        shape = [int(size) for size in info.sample_size]
        tensor = _filled(info.filler, shape, _DTYPES[info.type]).to(device)
        if info.keyword is None:
            args.append(tensor)
        else:
            kwargs[info.keyword] = tensor
    return tuple(args), kwargs


def _filled(filler: str, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    if filler == "random":
        generator = torch.Generator().manual_seed(0)
        if dtype is torch.long:
            return torch.randint(0, 2, shape, generator=generator)
        return torch.rand(shape, generator=generator, dtype=dtype)
    make: Callable[..., torch.Tensor] = torch.zeros if filler == "zeros" else torch.ones
    return make(shape, dtype=dtype)


def registered_loader(config: NNCFConfig) -> Any:
    """Return a data loader registered in the configuration, or None."""
    for kind in (QuantizationRangeInitArgs, BNAdaptationInitArgs):
        if config.has_extra_struct(kind):
            return config.get_extra_struct(kind).data_loader
    return None


def first_batch(
    model: nn.Module, loader: Any, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the forward arguments in the first batch of a loader, on a device.

    Random generators are left as they were, so that a shuffling loader trains as without this.
    Raises DataError when there is no batch.
    """
    with same_random_streams(loader):
        batch = next(iter(loader), None)
    if batch is None:
        raise DataError(
            f"The registered data loader ({type(loader).__name__}) yielded nothing. Expected at "
            "least one batch: check the size of its data set and drop_last; an iterator or "
            "generator can be used up only once, so register a DataLoader or a list."
        )
    args, kwargs = forward_arguments(batch, model, loader=loader)
    return map_tensors((tuple(args), dict(kwargs)), lambda tensor: tensor.to(device))  # type: ignore[no-any-return]  # same structure


def _from_loader(
    model: nn.Module, config: NNCFConfig, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    loader = registered_loader(config)
    if loader is None:
        raise ConfigError(
            "input_info: nothing says what the model's inputs look like. Add for example "
            '"input_info": {"sample_size": [1, 3, 224, 224]} to the configuration, or call '
            "nncf.register_default_init_args(nncf_config, train_loader)."
        )
    return first_batch(model, loader, device)
