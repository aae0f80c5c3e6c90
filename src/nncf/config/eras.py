# SPDX-License-Identifier: Apache-2.0
"""Configurations of earlier releases: what was called otherwise then is translated here.

Each Options class knows the former keys of its own section (``former``, ``modernize``); here is
what concerns whole sections. It never guesses about values: only names, places and keys that no
longer do anything are touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nncf import algorithms
from nncf.config.accuracy_aware import AdaptiveParams, EarlyExitParams
from nncf.config.root import RootOptions
from nncf.option_messages import Part, Problem

FORMER_KEYS = frozenset(old.key for old in RootOptions.former)
"""Keys of the top level of earlier releases."""


def modernize(config: dict[str, Any]) -> list[Problem]:
    """Translate ``config`` in place; return a note for each thing that is written anew today."""
    notes = [*RootOptions.modernize(config, ()), *_accuracy_aware(config)]
    sections = config.get("compression")
    if isinstance(sections, dict):
        notes += _algorithm(sections, ("compression",))
    elif isinstance(sections, list):
        for index, section in enumerate(sections):
            if isinstance(section, dict):
                notes += _algorithm(section, ("compression", index))
    return notes


def _algorithm(section: dict[str, Any], path: tuple[Part, ...]) -> Iterator[Problem]:
    name = section.get("algorithm")
    if not isinstance(name, str):
        return
    today = algorithms.ALIASES.get(name, name)
    if today != name:
        section["algorithm"] = today
        yield Problem((*path, "algorithm"), f' = "{name}": write "{today}" today.')
    if today in algorithms.names():
        yield from algorithms.options_class(today).modernize(section, path)


def _accuracy_aware(config: dict[str, Any]) -> Iterator[Problem]:
    """Give a section without mode, as releases up to 2.0 wrote it, its mode and params."""
    section = config.get("accuracy_aware_training")
    if not isinstance(section, dict) or not section or {"mode", "params"} & set(section):
        return
    only_adaptive = set(AdaptiveParams.model_fields) - set(EarlyExitParams.model_fields)
    is_early_exit = "maximal_total_epochs" in section and not only_adaptive & set(section)
    mode = "early_exit" if is_early_exit else "adaptive_compression_level"
    config["accuracy_aware_training"] = {"mode": mode, "params": section}
    yield Problem(
        ("accuracy_aware_training",),
        f' is written as in earlier releases. Write {{"mode": "{mode}", "params": {{…}}}}.',
    )
