# SPDX-License-Identifier: Apache-2.0
"""Configurations of earlier releases: what was called otherwise then is translated here.

``modernize`` changes a plain copy of the configuration and returns what it changed, each with
the advice what to write today. It never guesses about values: only names, places and keys that
no longer do anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nncf.algorithms import ALIASES
from nncf.algorithms.quantization.initializer import (
    AutoqOptions,
    HawqOptions,
    ManualOptions,
    PercentileOptions,
    ScopedRangeOptions,
)
from nncf.config.accuracy_aware import AdaptiveParams, EarlyExitParams
from nncf.errors import hint
from nncf.option_messages import Part, Problem
from nncf.options import Options

Section = dict[str, Any]
Path = tuple[Part, ...]


@dataclass(frozen=True)
class OldKey:
    """A key of earlier releases: where it stood, and what is written today, if anything."""

    algorithm: str  # "" is the top level, "*" any algorithm
    sections: tuple[str, ...]
    key: str
    advice: str
    new: str = ""
    convert: Callable[[Any], Any] = lambda value: value


OLD_KEYS = (
    OldKey("", (), "disable_shape_matching", "Shapes are never compared; remove the key."),
    OldKey("", (), "scopes_without_shape_matching", "Shapes are never compared; remove the key."),
    OldKey(
        "*",
        ("initializer", "batchnorm_adaptation"),
        "num_bn_forget_samples",
        "Adaptation needs no samples to forget the old statistics; remove the key.",
    ),
    OldKey(
        "quantization",
        (),
        "disable_saturation_fix",
        'Write "overflow_fix": "disable" for true, "enable" for false.',
        new="overflow_fix",
        convert=lambda value: {True: "disable", False: "enable"}.get(value, value),
    ),
    OldKey(
        "quantization",
        (),
        "quantizable_subgraph_patterns",
        "Places of quantizers follow from the graph; use scopes to change them.",
    ),
    OldKey(
        "filter_pruning",
        ("params",),
        "weight_importance",
        'Write "filter_importance".',
        new="filter_importance",
    ),
    OldKey(
        "filter_pruning",
        ("params",),
        "prune_last_conv",
        "A layer whose filters are outputs of the model is never pruned; remove the key.",
    ),
    OldKey(
        "filter_pruning",
        ("params",),
        "zero_grad",
        "Pruned filters get no gradient; remove the key.",
    ),
    OldKey(
        "rb_sparsity",
        ("params",),
        "check_sparsity_masks",
        "It checked that all processes have the same masks; remove the key.",
    ),
)

_PRECISION: dict[str, type[Options]] = {
    "hawq": HawqOptions,
    "autoq": AutoqOptions,
    "manual": ManualOptions,
}
# Keys of filter pruning up to release 2.0, whose default schedule was another one.
_EARLY_PRUNING_KEYS = ("weight_importance", "prune_last_conv", "zero_grad")


def modernize(config: Section) -> list[Problem]:
    """Translate ``config`` in place; return a note for each thing that is written anew today."""
    notes = list(_apply([old for old in OLD_KEYS if not old.algorithm], config, ()))
    notes += _accuracy_aware(config)
    sections = config.get("compression")
    if isinstance(sections, dict):
        notes += _algorithm(sections, ("compression",))
    elif isinstance(sections, list):
        for index, section in enumerate(sections):
            if isinstance(section, dict):
                notes += _algorithm(section, ("compression", index))
    return notes


def _algorithm(section: Section, path: Path) -> Iterator[Problem]:
    name = section.get("algorithm")
    if not isinstance(name, str):
        return
    if name in ALIASES:
        section["algorithm"] = ALIASES[name]
        yield Problem((*path, "algorithm"), f' = "{name}": write "{ALIASES[name]}" today.')
        name = ALIASES[name]
    if name == "filter_pruning":
        yield from _early_pruning(section.get("params"), (*path, "params"))
    yield from _apply([old for old in OLD_KEYS if old.algorithm in ("*", name)], section, path)
    initializer = section.get("initializer")
    if isinstance(initializer, dict):
        yield from _ranges(initializer.get("range"), (*path, "initializer", "range"))
        yield from _precision(initializer, (*path, "initializer", "precision"))


def _apply(old_keys: list[OldKey], section: Section, path: Path) -> Iterator[Problem]:
    for old in old_keys:
        inner: Any = section
        for name in old.sections:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or old.key not in inner:
            continue
        value = inner.pop(old.key)
        if old.new:
            inner.setdefault(old.new, old.convert(value))
        yield Problem(
            (*path, *old.sections, old.key), f" is a key of earlier releases. {old.advice}"
        )


def _early_pruning(params: Any, path: Path) -> Iterator[Problem]:
    is_early = isinstance(params, dict) and any(key in params for key in _EARLY_PRUNING_KEYS)
    if is_early and "schedule" not in params:
        params["schedule"] = "baseline"
        yield Problem(
            path,
            ' is written for a release whose default schedule was "baseline", which is used. '
            'Write "schedule": "baseline", or "exponential", today\'s default.',
        )


def _ranges(ranges: Any, path: Path) -> Iterator[Problem]:
    """Drop keys that do nothing in the two sections that earlier releases left open."""
    entries = enumerate(ranges) if isinstance(ranges, list) else [(None, ranges)]
    for index, entry in entries:
        if not isinstance(entry, dict):
            continue
        below = path if index is None else (*path, index)
        if index is not None:
            yield from _drop_unknown(entry, set(ScopedRangeOptions.model_fields), below)
        if isinstance(entry.get("params"), dict):
            known = set(PercentileOptions.model_fields)
            yield from _drop_unknown(entry["params"], known, (*below, "params"))


def _drop_unknown(section: Section, known: set[str], path: Path) -> Iterator[Problem]:
    for key in [key for key in section if key not in known]:
        del section[key]
        yield Problem((*path, key), f" is not an option and does nothing.{hint(key, known)}")


def _precision(initializer: Section, path: Path) -> Iterator[Problem]:
    """Fill in the type, and drop keys that only other types read."""
    precision = initializer.get("precision")
    if precision == {}:
        del initializer["precision"]
        return
    if not isinstance(precision, dict):
        return
    kind = precision.setdefault("type", "manual")
    if kind not in _PRECISION:
        return
    known = {key for options in _PRECISION.values() for key in options.model_fields}
    for key in [key for key in precision if key in known]:
        if key not in _PRECISION[kind].model_fields:
            del precision[key]
            yield Problem((*path, key), f' has no effect with type "{kind}".')


def _accuracy_aware(config: Section) -> Iterator[Problem]:
    """Give a section without mode, as releases up to 2.0 wrote it, its mode and params."""
    section = config.get("accuracy_aware_training")
    if not isinstance(section, Mapping) or not section or {"mode", "params"} & set(section):
        return
    only_adaptive = set(AdaptiveParams.model_fields) - set(EarlyExitParams.model_fields)
    is_early_exit = "maximal_total_epochs" in section and not only_adaptive & set(section)
    mode = "early_exit" if is_early_exit else "adaptive_compression_level"
    config["accuracy_aware_training"] = {"mode": mode, "params": dict(section)}
    yield Problem(
        ("accuracy_aware_training",),
        f' is written as in earlier releases. Write {{"mode": "{mode}", "params": {{…}}}}.',
    )
