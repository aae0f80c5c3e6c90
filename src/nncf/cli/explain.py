# SPDX-License-Identifier: Apache-2.0
"""``nncf explain``: a configuration as it is understood, with all defaults."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from nncf.config import NNCFConfig
from nncf.option_messages import path_text, value_text
from nncf.options import Options

Row = tuple[str, str, str]


def add_to(commands: Any) -> None:
    text = "print a configuration as it is understood: every option, its value, where it is from"
    parser = commands.add_parser("explain", help=text, description=text)
    parser.add_argument("config", metavar="CONFIG", help="configuration file (JSON with comments)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    config = NNCFConfig.from_json(options.config)
    print(explanation(config))


def explanation(config: NNCFConfig) -> str:
    """Return a table of all options of ``config``: path, value, ``file`` or ``default``."""
    rows: list[Row] = list(_rows(config.options, ()))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{key:<{widths[0]}}  {text:<{widths[1]}}  {origin}" for key, text, origin in rows]
    others = [key for key in config if key not in type(config.options).model_fields]
    if others:
        lines.append("left to the training script: " + ", ".join(map(str, others)))
    return "\n".join(line.rstrip() for line in lines)


def _rows(options: Options, path: tuple[str | int, ...]) -> Iterator[Row]:
    sections = {name: (items, many) for name, items, many in options.sections()}
    for name in sorted(type(options).model_fields, key=lambda name: name != "algorithm"):
        if name in sections:
            items, many = sections[name]
            for index, item in enumerate(items):
                yield from _rows(item, (*path, name, index) if many else (*path, name))
            continue
        value = getattr(options, name)
        origin = "file" if name in options.model_fields_set else "default"
        yield path_text((*path, name)), "unset" if value is None else _text(value), origin


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = {
            key: item.model_dump(exclude_unset=True) if isinstance(item, Options) else item
            for key, item in value.items()
        }
    return value_text(value)
