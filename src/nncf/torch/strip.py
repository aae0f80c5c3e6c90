# SPDX-License-Identifier: Apache-2.0
"""Strip: replace training-time CompressionOps by native operators and bake the weights."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

from nncf.compression.layout import Insert
from nncf.errors import NotCompressed
from nncf.torch.intercept import Compression, compression_of

_LOGGER = logging.getLogger("nncf")


def strip(model: nn.Module, do_copy: bool = True) -> nn.Module:
    """Return the plain form of a compressed model (see ``strip_compressed``).

    Raises NotCompressed when the model has no compression.
    """
    if compression_of(model) is None:
        raise NotCompressed(
            f"strip() needs a model that create_compressed_model returned; {type(model).__name__} "
            "has no compression."
        )
    return strip_compressed(model, do_copy)


def strip_compressed(model: nn.Module, do_copy: bool = True) -> nn.Module:
    """Return a model that computes the same bits in evaluation mode with native operators only.

    Weights are on their grid already; activations pass through
    ``torch.fake_quantize_per_tensor_affine`` or its per-channel form, which exporters know. With
    ``do_copy`` the given model stays as it is, otherwise it is changed.
    """
    stripped = copy.deepcopy(model) if do_copy else model
    compression = compression_of(stripped)
    assert compression is not None
    parameters = dict(stripped.named_parameters())
    with torch.no_grad():
        for insert in compression.layout:
            op = compression.ops[insert.name]
            if getattr(op, "enabled", True):
                _bake(insert, op, parameters, compression)
    for insert in compression.layout:
        op = compression.ops[insert.name]
        compression.ops[insert.name] = (
            op.native() if getattr(op, "enabled", True) else nn.Identity()
        )
    compression.requires_grad_(False)
    return stripped


def _bake(
    insert: Insert, op: nn.Module, parameters: dict[str, nn.Parameter], compression: Compression
) -> None:
    """Write the compressed weight into its parameter where the point reads the parameter itself."""
    for name in compression.baked_parameters.get(insert.name, ()):
        parameters[name].data.copy_(op.bake(parameters[name].data))
