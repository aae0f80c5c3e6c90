# SPDX-License-Identifier: Apache-2.0
"""Strip: replace training-time CompressionOps by native operators and bake the weights."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

from nncf.compression.layout import Insert, Layout
from nncf.errors import NotCompressed
from nncf.torch.intercept import Compression, compression_of, remove_companions, uninstall
from nncf.torch.removal import remove_hidden

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

    Weights carry what compression did to them; activations pass through
    ``torch.fake_quantize_per_tensor_affine`` or its per-channel form, which exporters know. A
    model that needs none of these is left without hooks and without ``compression``. With
    ``do_copy`` the given model stays as it is, otherwise it is changed.
    """
    stripped = copy.deepcopy(model) if do_copy else model
    compression = compression_of(stripped)
    assert compression is not None
    remove_companions(stripped)
    parameters = dict(stripped.named_parameters())
    native = {insert.name: _native(insert, compression) for insert in compression.layout}
    with torch.no_grad():
        for insert in compression.layout:
            op = compression.ops[insert.name]
            if getattr(op, "enabled", True):
                _bake(insert, op, parameters, compression)
    for name, module in native.items():
        compression.ops[name] = module
    compression.requires_grad_(False)
    remove_hidden(stripped, compression)
    if all(type(module) is nn.Identity for module in compression.ops.values()):
        _leave_plain(stripped, compression)
    return stripped


def _leave_plain(model: nn.Module, compression: Compression) -> None:
    """Take the compression away; only what corrects sizes in calls stays, if there is any."""
    if not compression.sizes.rules:
        uninstall(model)
        return
    compression.ops = nn.ModuleDict()
    compression.layout = Layout()
    compression.sites = {}
    compression.notes = {}


def _native(insert: Insert, compression: Compression) -> nn.Module:
    """Return what stays at the Insert's points: nothing where a baked mask has done its work."""
    op = compression.ops[insert.name]
    is_spent = insert.name in compression.spent_once_baked
    if not getattr(op, "enabled", True) or (is_spent and getattr(op, "spent_once_baked", False)):
        return nn.Identity()
    return op.native()


def _bake(
    insert: Insert, op: nn.Module, parameters: dict[str, nn.Parameter], compression: Compression
) -> None:
    """Write the compressed weight into its parameter where the point reads the parameter itself."""
    for name in compression.baked_parameters.get(insert.name, ()):
        parameters[name].data.copy_(op.bake(parameters[name].data))
