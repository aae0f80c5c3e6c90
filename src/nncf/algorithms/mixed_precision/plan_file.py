# SPDX-License-Identifier: Apache-2.0
"""``bitwidth_per_scope.json``: the widths that were chosen, for the user to edit and feed back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nncf.algorithms.mixed_precision.manual import KEY, Entries
from nncf.compression.files import write_text
from nncf.errors import ConfigError

NAME = "bitwidth_per_scope.json"


def write_plan(folder: Path, widths: Mapping[str, int], names: Iterable[str]) -> Path:
    """Write the widths of all quantizers, in the order of ``names``; return the file's path."""
    lines = ",\n".join(f"    {json.dumps([widths[name], name])}" for name in names)
    path = folder / NAME
    write_text(path, f'{{"bitwidth_per_scope": [\n{lines}\n]}}\n')
    return path


def entries_of(option: Entries | str) -> Entries:
    """Return the entries of the option ``bitwidth_per_scope``, read from its file if it is a path.

    The file holds the list itself, or an object with the list under ``bitwidth_per_scope``.
    """
    if not isinstance(option, str):
        return option
    path = Path(option)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f'{KEY} "{option}" cannot be read ({error.strerror}). Expected a file such as '
            f"{NAME}, which a search writes to the log directory: correct the path, or give a list."
        ) from error
    except ValueError as error:
        raise _wrong(option, f"it is no JSON: {error}") from error
    listed = content.get("bitwidth_per_scope") if isinstance(content, dict) else content
    if not isinstance(listed, list):
        raise _wrong(option, "it has no list of pairs")
    return [_entry(option, index, item) for index, item in enumerate(listed)]


def _entry(path: str, index: int, item: Any) -> tuple[int, str]:
    if isinstance(item, list) and len(item) == 2:
        bits, scope = item
        if isinstance(bits, int) and not isinstance(bits, bool) and isinstance(scope, str):
            return bits, scope
    raise _wrong(path, f"its entry {index} is {json.dumps(item)}")


def _wrong(path: str, what: str) -> ConfigError:
    return ConfigError(
        f'{KEY} "{path}": {what}. Expected {{"bitwidth_per_scope": [[4, "scope|WEIGHT"], …]}}: '
        "correct the file, or give the list itself."
    )
