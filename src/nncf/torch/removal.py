# SPDX-License-Identifier: Apache-2.0
"""Take hidden channels out of a model: shorter parameters, layers and calls that know of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from nncf.compression.channel_map import CHANNELS, ChannelMap, Correction, Kept, masks_of
from nncf.errors import ExportError
from nncf.torch.intercept import Compression, correct_sizes
from nncf.torch.sizes import Sizes

_LOGGER = logging.getLogger("nncf")
_NAMED = 5
"""Layers named in a warning."""

Masks = Mapping[int, torch.Tensor]
"""By axis, which indices are kept (bool)."""


def remove_hidden(model: nn.Module, compression: Compression) -> None:
    """Remove from a stripped model the channels that its masks hide; the masks go too.

    Raises ExportError when an algorithm left something at a point that cannot be shortened.
    """
    channels: ChannelMap | None = compression.notes.get(CHANNELS)
    if channels is None:
        return
    kept = channels.kept_units(compression.ops)
    for name in channels.masks:
        compression.ops[name] = nn.Identity()
    if not kept.all():
        _shorten_ops(compression, channels, kept)
        remove_channels(model, channels, kept)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        _warn_of_unseen(unseen_layers(compression.unused, shapes))


def unseen_layers(
    unused: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Return the outermost modules that no used parameter is in, but a matrix is.

    ``unused`` are names of parameters, ``shapes`` has those of all.
    """
    used = {outer for name in shapes if name not in unused for outer in _modules_around(name)}
    found: dict[str, None] = {}
    for name in unused:
        outermost = next((path for path in _modules_around(name) if path not in used), None)
        if outermost is not None and len(shapes.get(name, ())) > 1:
            found[outermost] = None
    return tuple(found)


def _modules_around(parameter: str) -> list[str]:
    """Return the paths of the modules that hold a parameter, from the outermost."""
    parts = parameter.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _warn_of_unseen(layers: Sequence[str]) -> None:
    if not layers:
        return
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    _LOGGER.warning(
        "strip: channels were removed, but %s did not run when the model was looked at, and keep "
        "their sizes: they may no longer fit their inputs. If they are needed, run them in "
        "dummy_forward_fn, or put the layers before them into ignored_scopes; else delete them.",
        ", ".join(layers[:_NAMED]) + more,
    )


def remove_channels(model: nn.Module, channels: ChannelMap, kept: Kept) -> None:
    """Remove from a model all channels whose unit is not kept, in place."""
    groups: dict[str, int] = {}
    corrections: dict[str, list[tuple[str, Correction]]] = {}
    shortened = channels.shortened_lengths(kept)
    for number in channels.numbers:
        layer = model.get_submodule(number.layer)
        if number.meaning == "features":
            _set_features(layer, number.new_value(kept))
        elif number.owner and owns_its_sizes(layer):
            if number.meaning == "groups":
                groups[number.layer] = number.new_value(kept)
        elif (rule := number.correction(kept, shortened)) is not None:
            corrections.setdefault(number.address, []).append((number.meaning, rule))
    found = {name: _as_tensors(masks_of(axes, kept)) for name, axes in channels.tensors.items()}
    shorten(model, {name: masks for name, masks in found.items() if masks}, groups)
    needed = {address: _needed(several) for address, several in corrections.items()}
    rules = {address: several for address, several in needed.items() if several}
    if rules:
        correct_sizes(model, Sizes(rules))


def _needed(found: Sequence[tuple[str, Correction]]) -> tuple[Correction, ...]:
    """Return the corrections of one call; open numbers stay open unless another has to be."""
    is_open = any(rule.inferred for _, rule in found)
    return tuple(rule for meaning, rule in found if meaning != "open" or is_open)


def _shorten_ops(compression: Compression, channels: ChannelMap, kept: Kept) -> None:
    for insert in compression.layout:
        op = compression.ops[insert.name]
        axes = channels.points.get(str(insert.points[0]), {})
        masks = _as_tensors(masks_of(axes, kept))
        if type(op) is nn.Identity or not masks:
            continue
        if not hasattr(op, "shorten"):
            raise ExportError(
                f"{insert.name}: channels are removed here, and {type(op).__name__} cannot follow. "
                "Leave the layer to one of the two algorithms with ignored_scopes."
            )
        op.shorten(masks)


def _as_tensors(masks: Mapping[int, Kept]) -> dict[int, torch.Tensor]:
    return {axis: torch.from_numpy(mask) for axis, mask in masks.items()}


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


def _set_features(module: nn.Module, features: int) -> None:
    """Tell an instance norm without parameters, which has no weight to follow."""
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        module.num_features = features


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
