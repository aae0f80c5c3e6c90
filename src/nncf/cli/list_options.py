# SPDX-License-Identifier: Apache-2.0
"""``nncf options``: what may be written in the section of an algorithm."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import Any

from nncf import algorithms
from nncf.config.root import RootOptions
from nncf.option_tables import option_rows


def add_to(commands: Any) -> None:
    text = "list the keys of an algorithm's section, or of the top level"
    parser = commands.add_parser("options", help=text, description=text)
    parser.add_argument(
        "algorithm",
        nargs="?",
        choices=algorithms.names(),
        help="name of the algorithm; without it, the top level is listed",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    name = options.algorithm
    section = RootOptions if name is None else algorithms.options_class(name)
    width = shutil.get_terminal_size().columns
    for row in option_rows(section):
        print(f"{row.key}  ({row.allowed}; {row.default.replace('`', '')})")
        print(textwrap.fill(row.meaning, width, initial_indent="    ", subsequent_indent="    "))
