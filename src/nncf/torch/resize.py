# SPDX-License-Identifier: Apache-2.0
"""Take channels out of a model: shorter parameters and buffers, and layers that know of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Masks = Mapping[int, torch.Tensor]
"""By axis, which indices are kept (bool)."""


def shorten(model: nn.Module, kept: Mapping[str, Masks], groups: Mapping[str, int]) -> None:
    """Keep only some indices of the named parameters and buffers, in place.

    ``groups`` gives convolutions and group norms, by path, their new number of groups. Layers of
    PyTorch whose attributes repeat sizes of their weights get them corrected.
    """
    tensors: dict[str, torch.Tensor] = {
        **dict(model.named_parameters()),
        **dict(model.named_buffers()),
    }
    with torch.no_grad():
        for name, masks in kept.items():
            tensors[name].data = select(tensors[name].data, masks)
            if tensors[name].grad is not None:
                tensors[name].grad = None
    owners = {name.rpartition(".")[0] for name in kept} | set(groups)
    for path in owners:
        _correct_attributes(model.get_submodule(path), groups.get(path))


def select(tensor: torch.Tensor, masks: Masks) -> torch.Tensor:
    """Return the tensor without the indices that are not kept."""
    for axis, mask in masks.items():
        indices = mask.nonzero().flatten().to(tensor.device)
        tensor = tensor.index_select(axis, indices)
    return tensor.contiguous()


def _correct_attributes(module: nn.Module, groups: int | None) -> None:
    if isinstance(module, nn.modules.conv._ConvNd):
        module.groups = groups if groups is not None else module.groups
        first, second = module.weight.shape[:2]
        if module.transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.in_channels, module.out_channels = second * module.groups, first
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if tensor is None else len(tensor)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = groups if groups is not None else module.num_groups
        module.num_channels = len(module.weight)
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def owns_its_sizes(module: nn.Module) -> bool:
    """Tell whether a layer passes its own attributes on, so that its calls need no correction."""
    known = (
        *(nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm),
        *(nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag, nn.PReLU),
    )
    has_weight = getattr(module, "weight", None) is not None
    return isinstance(module, known) and has_weight
