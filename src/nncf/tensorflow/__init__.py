# SPDX-License-Identifier: Apache-2.0
"""The door of the Keras backend: everything that the documents promise under ``nncf.tensorflow``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nncf.tensorflow.environment import check_keras

check_keras()

# At once, or the submodule of that name would stand here instead of the function.
from nncf.tensorflow.strip import strip  # noqa: E402  # not before the check

if TYPE_CHECKING:
    from nncf.config import NNCFConfig, register_default_init_args
    from nncf.tensorflow.callbacks.compression import create_compression_callbacks
    from nncf.tensorflow.compress import create_compressed_model

__all__ = [
    "AdaptiveCompressionTrainingLoop",
    "EarlyExitCompressionTrainingLoop",
    "NNCFConfig",
    "create_compressed_model",
    "create_compression_callbacks",
    "register_default_init_args",
    "strip",
]

_LOOPS = ["AdaptiveCompressionTrainingLoop", "EarlyExitCompressionTrainingLoop"]
_HOMES = {
    "nncf.config": ["NNCFConfig", "register_default_init_args"],
    "nncf.tensorflow.callbacks.compression": ["create_compression_callbacks"],
    "nncf.tensorflow.compress": ["create_compressed_model"],
}
# by name only: the loops live in a layer above this one
_HOMES["nncf.training"] = _LOOPS
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'nncf.tensorflow' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
