# SPDX-License-Identifier: Apache-2.0
"""The door of the PyTorch backend: everything that the documents promise under ``nncf.torch``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from nncf.compression.stage import CompressionStage

# At once, or the submodule of that name would stand here instead of the function.
from nncf.torch.strip import strip

if TYPE_CHECKING:
    from nncf.config import NNCFConfig, register_default_init_args
    from nncf.torch.compress import create_compressed_model
    from nncf.torch.markers import (
        disable_tracing,
        forward_nncf_trace,
        nncf_model_input,
        nncf_model_output,
        no_nncf_trace,
        register_operator,
    )
    from nncf.torch.packed import load_packed, save_packed
    from nncf.torch.registration import register_module
    from nncf.torch.state import load_state

__all__ = [
    "NNCFConfig",
    "create_compressed_model",
    "disable_tracing",
    "forward_nncf_trace",
    "load_packed",
    "load_state",
    "nncf_model_input",
    "nncf_model_output",
    "no_nncf_trace",
    "register_default_init_args",
    "register_module",
    "register_operator",
    "save_packed",
    "strip",
]

_HOMES = {
    "nncf.config": ["NNCFConfig", "register_default_init_args"],
    "nncf.torch.compress": ["create_compressed_model"],
    "nncf.torch.markers": [
        *("disable_tracing", "forward_nncf_trace", "no_nncf_trace"),
        *("nncf_model_input", "nncf_model_output", "register_operator"),
    ],
    "nncf.torch.packed": ["load_packed", "save_packed"],
    "nncf.torch.registration": ["register_module"],
    "nncf.torch.state": ["load_state"],
}
# Checkpoints may hold a stage; this lets torch.load(weights_only=True) read it.
torch.serialization.add_safe_globals([CompressionStage])

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'nncf.torch' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
