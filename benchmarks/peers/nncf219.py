# SPDX-License-Identifier: Apache-2.0
"""The last release of the original NNCF with ``create_compressed_model``, 2.19.

Run by the interpreter of an environment that has ``torch``, ``nncf==2.19.0`` and ``ninja``.
It has to be told to trace as the interface of that time did, and to build its C++ operators
without a time limit.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["NNCF_TORCH_LEGACY_TRACING"] = "1"
os.environ["NNCF_EXTENSION_LOAD_TIMEOUT"] = "0"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

import torch
from torch import Tensor, nn

from benchmarks.step_server import serve
from nncf import NNCFConfig
from nncf.torch import create_compressed_model, register_default_init_args


class Batches:
    """A loader of the given batches, with zeros as targets."""

    def __init__(self, *batches: Tensor) -> None:
        self.batches = batches
        self.batch_size = len(batches[0])

    def __iter__(self) -> Any:
        return iter([(x, torch.zeros(len(x), dtype=torch.long)) for x in self.batches])

    def __len__(self) -> int:
        return len(self.batches)


def compress(model: nn.Module, batches: Batches, settings: dict[str, Any]) -> tuple[Any, nn.Module]:
    """Return the controller and the network, quantized with ranges from the batches."""
    shape = [1, *batches.batches[0].shape[1:]]
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": shape},
            "compression": {"algorithm": "quantization", **settings},
        }
    )
    config = register_default_init_args(config, batches)
    return create_compressed_model(model, config, dump_graphs=False)


def quantized(model: nn.Module, batch: Tensor) -> nn.Module:
    """The network as ``create_compressed_model`` of release 2.19 quantizes it by default."""
    return compress(model, Batches(batch[:8]), {})[1].train()


if __name__ == "__main__":
    serve(quantized)
