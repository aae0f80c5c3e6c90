# SPDX-License-Identifier: Apache-2.0
"""From a file to a dict (comments allowed), and from a dict to RootOptions, all errors at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncf import algorithms
from nncf.config.eras import FORMER_KEYS, modernize
from nncf.config.root import RootOptions, rules_between
from nncf.errors import ConfigError, nearest
from nncf.option_messages import Part, Problem, raise_problems, value_text
from nncf.options import Options

KNOWN_KEYS = frozenset(RootOptions.model_fields)


# --------------------------------------------------------------------------------- from a file


def read_file(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file, in which comments and trailing commas may stand.

    Raises ConfigError with file, line and column when it cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error.reason}.") from error
    data = _parse(text, path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected an object {{…}}, found {value_text(data)}.")
    return data


def _parse(text: str, path: Path) -> Any:
    try:  # plain JSON is parsed in C
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError:
        pass
    import json5

    try:
        return json5.loads(text, allow_duplicate_keys=False)
    except (ValueError, RecursionError) as error:
        raise ConfigError(_syntax_message(str(error), text, path)) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f'key "{key}" is written twice in one object; keep one of them.')
        found[key] = value
    return found


def _syntax_message(message: str, text: str, path: Path) -> str:
    match = re.match(r"<string>:(\d+) (.*) at column (\d+)$", message, re.DOTALL)
    if match is None:
        duplicate = re.match(r'Duplicate key "(.*)" found in object', message)
        if duplicate:
            message = f'key "{duplicate[1]}" is written twice in one object; keep one of them.'
        return f"{path}: {message if text.strip() else 'the file is empty; expected an object.'}"
    number, what, column = int(match[1]), match[2], int(match[3])
    lines = text.splitlines()
    line = lines[number - 1] if number <= len(lines) else ""
    found = re.match(r'Unexpected "(.*)"$', what, re.DOTALL)
    what = f"unexpected {found[1]}" if found else "unexpected end of the file"
    return (
        f"{path}, line {number}, column {column}: {what}. Is a comma, a quote or a bracket "
        f"missing before it?\n    {line}\n    {' ' * (column - 1)}^"
    )


# --------------------------------------------------------------------------------- from a dict


@dataclass(frozen=True)
class Reading:
    """A checked configuration, and what a reader of it should know."""

    root: RootOptions
    remarks: tuple[Problem, ...] = field(default=())


def plain(value: Any) -> Any:
    """Return a copy of nested dicts and lists; whatever else they hold is shared."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def read_options(data: Mapping[str, Any], *, source: str = "") -> Reading:
    """Return the typed options of a configuration.

    Raises ConfigError that lists everything wrong in it, each with its JSON path.
    """
    known = {key: plain(data[key]) for key in data if key in KNOWN_KEYS | FORMER_KEYS}
    notes = [*_misspelled(data), *modernize(known)]
    sections = known.pop("compression", [])
    root, problems = RootOptions.try_read(known)
    found, wrong = _read_algorithms(sections)
    if root is None:  # what can be read of it still has to fit the rest
        broken = {problem.path[0] for problem in problems if problem.path}
        rest = {key: value for key, value in known.items() if key not in broken}
        root, _ = RootOptions.try_read(rest)
    problems += wrong
    if root is not None and not wrong:
        root = _with_algorithms(root, found)
        problems += _as_written(rules_between(root), sections)
    raise_problems(problems, source)
    assert root is not None  # else there were problems
    return Reading(root, tuple(notes + _as_written(root.all_remarks(), sections)))


def _read_algorithms(sections: Any) -> tuple[list[Options], list[Problem]]:
    if isinstance(sections, Mapping):
        return _collect([(("compression",), sections)])
    if not isinstance(sections, list):
        text = f" = {value_text(sections)}: expected an algorithm or a list of algorithms."
        return [], [Problem(("compression",), text)]
    return _collect([(("compression", index), item) for index, item in enumerate(sections)])


def _collect(
    sections: list[tuple[tuple[Part, ...], Any]],
) -> tuple[list[Options], list[Problem]]:
    found: list[Options] = []
    problems: list[Problem] = []
    for path, section in sections:
        options, wrong = _read_algorithm(section, path)
        problems.extend(wrong)
        found.extend([options] if options is not None else [])
    return found, problems


def _read_algorithm(section: Any, path: tuple[Part, ...]) -> tuple[Options | None, list[Problem]]:
    listed = ", ".join(f'"{name}"' for name in algorithms.names())
    if not isinstance(section, Mapping):
        text = f' = {value_text(section)}: expected an object with the key "algorithm".'
        return None, [Problem(path, text)]
    name = section.get("algorithm")
    if not isinstance(name, str):
        what = "required key is missing" if name is None else f"{value_text(name)} is no name"
        return None, [Problem((*path, "algorithm"), f": {what}. Expected one of {listed}.")]
    try:
        options = algorithms.options_class(name)
    except ConfigError as error:
        return None, [Problem((*path, "algorithm"), f": {error}")]
    return options.try_read(section, path=path)


def _with_algorithms(root: RootOptions, found: list[Options]) -> RootOptions:
    """Return ``root`` with its algorithms, which take the global learning rate multiplier."""
    multiplier = root.compression_lr_multiplier
    field_name = "compression_lr_multiplier"
    resolved = [
        item.model_copy(update={field_name: multiplier})
        if multiplier is not None and getattr(item, field_name, 0) is None
        else item
        for item in found
    ]
    return root.model_copy(update={"compression": tuple(resolved)})


def _as_written(problems: Any, sections: Any) -> list[Problem]:
    """Return problems whose paths fit a ``compression`` that may be a single object."""
    if not isinstance(sections, Mapping):
        return list(problems)
    return [
        Problem((p.path[0], *p.path[2:]), p.text) if p.path[:2] == ("compression", 0) else p
        for p in problems
    ]


def _misspelled(data: Mapping[Any, Any]) -> list[Problem]:
    """Return a note for each unknown top-level key that looks like a known one.

    Other unknown keys belong to the training script and are nobody's business here.
    """
    notes = []
    for key in data:
        if not isinstance(key, str) or key in KNOWN_KEYS | FORMER_KEYS:
            continue
        likely = [name for name in nearest(key, KNOWN_KEYS - set(data), 1) if _alike(key, name)]
        if likely:
            text = f' is no key of the configuration. If you mean "{likely[0]}", write that.'
            notes.append(Problem((key,), text))
    return notes


def _alike(word: str, other: str) -> bool:
    import difflib

    return difflib.SequenceMatcher(None, word, other).ratio() > 0.85
