# SPDX-License-Identifier: Apache-2.0
"""The registry of algorithms: name in a configuration → folder. One line each, all lazy.

An algorithm is a folder: its ``__init__`` tells its story and has its Options, ``algorithm.py``
decides what goes where, and ``torch.py`` (or another backend) computes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nncf.errors import ConfigError, hint

if TYPE_CHECKING:
    from nncf.options import Options

_OPTIONS = {
    "quantization": "QuantizationOptions",
    "binarization": "BinarizationOptions",
    "magnitude_sparsity": "MagnitudeSparsityOptions",
    "rb_sparsity": "RBSparsityOptions",
    "const_sparsity": "ConstSparsityOptions",
    "filter_pruning": "FilterPruningOptions",
    "knowledge_distillation": "KnowledgeDistillationOptions",
}

ALIASES = {"experimental_quantization": "quantization"}
"""Names that earlier releases gave to an algorithm of today."""

NOT_OFFERED = {
    "movement_sparsity": (
        "it was an experiment of earlier releases, bound to the layer names of a few transformer "
        'models. For sparse transformers use "magnitude_sparsity" or "rb_sparsity"'
    ),
    "bootstrapNAS": (
        "it searched for an architecture by training a super-network, which is another task than "
        'compressing a given model. For smaller networks use "filter_pruning"'
    ),
}
"""Names of earlier releases that are refused, and why."""


def names() -> tuple[str, ...]:
    """Return the names of all algorithms that configurations may ask for."""
    return tuple(_OPTIONS)


def options_class(name: str) -> type[Options]:
    """Return the Options class of an algorithm. Raises ConfigError for an unknown name."""
    known = canonical(name)
    found: type[Options] = getattr(importlib.import_module(f"{__name__}.{known}"), _OPTIONS[known])
    return found


def canonical(name: str) -> str:
    """Return today's name of an algorithm. Raises ConfigError that says what to write."""
    known = ALIASES.get(name, name)
    if known in _OPTIONS:
        return known
    if name in NOT_OFFERED:
        raise ConfigError(f'"{name}" is not offered: {NOT_OFFERED[name]}.')
    listed = ", ".join(f'"{item}"' for item in _OPTIONS)
    raise ConfigError(f'"{name}" is no algorithm.{hint(name, _OPTIONS)} Expected one of {listed}.')


def load(name: str) -> Any:
    """Return the Algorithm class of ``name``, importing its folder.

    Raises ConfigError for an unknown name and for one that cannot train yet.
    """
    known = canonical(name)
    module_name = f"{__name__}.{known}.algorithm"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise ConfigError(
            f'"{known}" cannot be trained with yet: this release reads and checks its '
            "configuration only. Remove it from the compression section to go on."
        ) from None
    from nncf.compression.algorithm import Algorithm

    for item in vars(module).values():
        is_ours = isinstance(item, type) and item.__module__ == module_name
        if is_ours and issubclass(item, Algorithm):
            return item
    raise ImportError(f"{module_name} defines no subclass of Algorithm")
