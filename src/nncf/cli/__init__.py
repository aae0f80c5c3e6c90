# SPDX-License-Identifier: Apache-2.0
"""The command line: ``nncf`` or ``python -m nncf``. Each command is a file of this folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from nncf import __version__
from nncf.errors import NNCFError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 1 when it failed (the reason is on stderr), 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except NNCFError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    from nncf.cli import config_schema, explain, list_options, size

    parser = argparse.ArgumentParser(
        prog="nncf", description="Compress neural networks while they train."
    )
    parser.add_argument("--version", action="version", version=f"nncf {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (explain, list_options, config_schema, size):
        command.add_to(commands)
    return parser
