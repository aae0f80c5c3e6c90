# SPDX-License-Identifier: Apache-2.0
"""nncf: smaller and faster neural networks, by compressing them while they train.

    import nncf
    nncf_config = nncf.NNCFConfig.from_json("config.json")
    nncf_config = nncf.register_default_init_args(nncf_config, train_loader)
    compression_ctrl, model = nncf.create_compressed_model(model, nncf_config)

Names are loaded when they are first used: importing nncf imports no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nncf.backends import create_compressed_model, load_state, register_module, strip
    from nncf.compression.stage import CompressionStage
    from nncf.config import NNCFConfig, register_default_init_args
    from nncf.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        ExportError,
        LevelError,
        MissingDependency,
        ModelError,
        NNCFError,
        NotCompressed,
        ParityError,
        ScopeNotFound,
    )
    from nncf.logging import disable_logging, nncf_logger, set_log_file, set_log_level
    from nncf.resources import NNCFDataLoader

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "CompressionStage",
    "ConfigError",
    "DataError",
    "ExportError",
    "LevelError",
    "MissingDependency",
    "ModelError",
    "NNCFConfig",
    "NNCFDataLoader",
    "NNCFError",
    "NotCompressed",
    "ParityError",
    "ScopeNotFound",
    "__version__",
    "create_compressed_model",
    "disable_logging",
    "load_state",
    "nncf_logger",
    "register_default_init_args",
    "register_module",
    "set_log_file",
    "set_log_level",
    "strip",
]

_HOMES = {
    "nncf.backends": ["create_compressed_model", "load_state", "register_module", "strip"],
    "nncf.compression.stage": ["CompressionStage"],
    "nncf.config": ["NNCFConfig", "register_default_init_args"],
    "nncf.errors": [name for name in __all__ if name.endswith("Error")]
    + ["MissingDependency", "NotCompressed", "ScopeNotFound"],
    "nncf.logging": ["disable_logging", "nncf_logger", "set_log_file", "set_log_level"],
    "nncf.resources": ["NNCFDataLoader"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'nncf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
