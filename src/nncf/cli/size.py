# SPDX-License-Identifier: Apache-2.0
"""``nncf size``: where the bytes of a packed checkpoint go."""

from __future__ import annotations

import argparse
from typing import Any

from nncf.compression.packed_file import size_table


def add_to(commands: Any) -> None:
    text = "print where every byte of a safetensors file goes, such as save_packed writes"
    parser = commands.add_parser("size", help=text, description=text)
    parser.add_argument("file", metavar="FILE", help="packed checkpoint, or any safetensors file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    print(size_table(options.file))
