# SPDX-License-Identifier: Apache-2.0
"""``load_state``: put a checkpoint into a model, whatever both were wrapped in when it was saved."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nncf.errors import CheckpointError
from nncf.torch.intercept import Compression
from nncf.torch.legacy_keys import LegacyKeys

_LOGGER = logging.getLogger("nncf")

WRAPPERS = frozenset(["module", "nncf_module", "_nncf", "_orig_mod"])
"""Attributes under which wrappers (DataParallel, torch.compile, earlier releases) hold a model."""


def load_state(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    is_resume: bool = False,
    keys_to_ignore: Iterable[str] | None = None,
) -> int:
    """Load the parameters and buffers that match; return how many were loaded.

    Keys are compared without the names of wrappers (``module.``, ``nncf_module.``, ``_nncf.``),
    so it does not matter how the model is wrapped and how the saved one was. Keys that releases
    1.x to 2.6 of the original wrote for quantizers are translated, with a warning. Masks that keep
    the zeros of a weight follow weights that are loaded without masks.

    Args:
        model: a model, compressed or not, wrapped or not.
        state_dict: what ``model.state_dict()`` of the saved run returned.
        is_resume: True demands that every key matches; use it to resume or to evaluate a
            compressed checkpoint. False loads what matches, such as the weights of an
            uncompressed checkpoint, and warns of keys that do not.
        keys_to_ignore: keys, or first parts of keys, that are neither loaded nor complained of.

    Raises:
        CheckpointError: ``state_dict`` is no state dict, or ``is_resume`` and something does not
            match. The model is as before.
    """
    _check(state_dict)
    target = model.state_dict()
    matches = _match(model, target, state_dict, frozenset(keys_to_ignore or ()))
    problems = matches.problems(strict=is_resume)
    if problems and is_resume:
        raise CheckpointError(
            f"{problems}\nThe model was left as it was. Expected a checkpoint of this model with "
            "this configuration. To load only what matches, pass is_resume=False; to leave keys "
            "out, keys_to_ignore."
        )
    if problems:
        _LOGGER.warning("%s", problems)
    model.load_state_dict(matches.tensors, strict=False)
    _tell_of_weights(model, matches.tensors.keys())
    _LOGGER.info("Loaded %d/%d parameters", len(matches.tensors), len(target))
    return len(matches.tensors)


def _tell_of_weights(model: nn.Module, loaded: Collection[str]) -> None:
    """Show new weights to the CompressionOps that follow them and were not loaded themselves.

    Such an op has a method ``weight_loaded(weight)``.
    """
    for path, module in model.named_modules():
        if not isinstance(module, Compression):
            continue
        root = path.rpartition(".")[0]
        for name, parameter in module.read_parameters.items():
            tell = getattr(module.ops[name], "weight_loaded", None)
            own = f"{path}.ops.{name}."
            if tell is None or any(key.startswith(own) for key in loaded):
                continue
            if f"{root}.{parameter}".lstrip(".") in loaded:
                tell(model.get_submodule(root).get_parameter(parameter))


@dataclass
class _Matches:
    """What becomes of each key: ``tensors`` are to be loaded, by the model's own keys."""

    tensors: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def take(self, key: str, value: Any, like: Any, *, convert: bool) -> None:
        """Note a saved value for the model's ``key``, if it has the shape of ``like``."""
        self.seen.add(key)
        fitted = _fitted(value, like, convert=convert)
        if fitted is None:
            sizes = f"{tuple(value.shape)} in place of {tuple(like.shape)}"
            self.mismatched.append(f"{key}: {sizes}")
        else:
            self.tensors[key] = fitted

    def problems(self, *, strict: bool) -> str:
        """Return the complaint as text, empty where there is none.

        Missing keys alone are no problem unless ``strict``: an uncompressed checkpoint has none
        for the quantizers.
        """
        found = {"Unexpected": self.unexpected, "Size mismatched": self.mismatched}
        if strict or any(found.values()):
            found["Missing"] = self.missing
        parts = [
            f"\n\t{status} key(s):\n\t\t" + ",\n\t\t".join(f'"{key}"' for key in keys) + "."
            for status, keys in found.items()
            if keys
        ]
        return "Error(s) when loading model parameters:" + "".join(parts) if parts else ""


def _check(state_dict: Any) -> None:
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"load_state got {type(state_dict).__name__} in place of a state dict. Expected a "
            "mapping of parameter names to tensors, as model.state_dict() returns it."
        )
    for key, value in state_dict.items():
        is_extra = isinstance(key, str) and key.endswith("_extra_state")
        if not isinstance(key, str) or not (is_extra or isinstance(value, torch.Tensor)):
            names = ", ".join(repr(name) for name in list(state_dict)[:8])
            raise CheckpointError(
                f"load_state: the entry {key!r} is {type(value).__name__}, no tensor. Expected a "
                "mapping of parameter names to tensors. A whole checkpoint holds it under a key "
                f"such as 'state_dict'; the keys of this one begin with: {names}."
            )


def _match(
    model: nn.Module,
    target: Mapping[str, Any],
    state_dict: Mapping[str, Any],
    ignored: frozenset[str],
) -> _Matches:
    own = {bare: key for key, bare in _bare_keys(target).items()}
    ours = _compressions(model)
    legacy = LegacyKeys(ours)
    matches = _Matches()
    for key, bare in _bare_keys(state_dict).items():
        if _is_ignored(key, bare, ignored):
            continue
        if bare not in own and legacy.is_optional(bare):
            matches.mismatched += legacy.disagreements(key, bare, state_dict[key])
            continue
        names = [bare] if bare in own else legacy.translate(bare)
        found = [name for name in names if name in own]
        if not found:
            matches.unexpected.append(key)
        for name in found:
            convert = any(name.startswith(f"{path}.") for path in ours)
            matches.take(own[name], state_dict[key], target[own[name]], convert=convert)
    legacy.warn()
    for bare, key in own.items():
        known = key in matches.seen or legacy.is_newer(bare)
        if not known and not _is_ignored(key, bare, ignored):
            matches.missing.append(key)
    return matches


def _bare_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return ``{key: key without wrappers' names}``; keys that would collide stay as they are."""
    bare = {key: ".".join(p for p in key.split(".") if p not in WRAPPERS) for key in keys}
    seen: dict[str, int] = {}
    for name in bare.values():
        seen[name] = seen.get(name, 0) + 1
    return {key: name if seen[name] == 1 else key for key, name in bare.items()}


def _is_ignored(key: str, bare: str, ignored: frozenset[str]) -> bool:
    return any(
        name in (key, bare) or key.startswith(f"{name}.") or bare.startswith(f"{name}.")
        for name in ignored
    )


def _compressions(model: nn.Module) -> dict[str, Compression]:
    """Return the compression submodules by their path without wrappers' names."""
    modules = {path: m for path, m in model.named_modules() if isinstance(m, Compression)}
    bare = _bare_keys(modules)
    return {bare[path]: module for path, module in modules.items()}


def _fitted(value: Any, like: Any, *, convert: bool) -> Any | None:
    """Return a saved value in the shape of the model's; None when it does not fit.

    With ``convert`` axes of length one do not count: other releases saved a range per tensor as
    a number or with the tensor's rank.
    """
    if not isinstance(value, torch.Tensor) or not isinstance(like, torch.Tensor):
        return value
    if nn.parameter.is_lazy(like) or value.shape == like.shape:
        return value
    same = [n for n in value.shape if n != 1] == [n for n in like.shape if n != 1]
    return value.reshape(like.shape) if convert and same else None
