# SPDX-License-Identifier: Apache-2.0
"""The table of an Options class for the documents and the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nncf.option_messages import allowed, value_text
from nncf.options import BACKENDS, Options

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One key: where it stands, what it may be, and what it means."""

    key: str
    allowed: str
    default: str
    meaning: str
    backends: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        return f"`{self.key}`", self.allowed, self.default, self.meaning, ", ".join(self.backends)


def option_table(options: type[Options]) -> str:
    """Return all keys of ``options``, those of inner sections too, as a markdown table."""
    lines: list[tuple[str, ...]] = [
        ("Key", "Allowed", "Default", "Meaning", "Backends"),
        ("---",) * 5,
    ]
    lines += [row.cells() for row in option_rows(options)]
    escaped = ((cell.replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped) + "\n"


def option_rows(options: type[Options]) -> list[Row]:
    """Return a Row for each key of ``options``, in order, inner sections after their key."""
    schema = options.model_json_schema()
    return list(_rows([schema], "", schema.get("$defs", {}), BACKENDS))


def _rows(
    forms: list[Schema], prefix: str, definitions: Schema, backends: tuple[str, ...]
) -> Iterator[Row]:
    """Yield the rows of a section that may have several ``forms`` (a union)."""
    printed: dict[str, str] = {}
    names = dict.fromkeys(name for form in forms for name in form.get("properties", {}))
    for name in sorted(names, key=lambda name: name != "algorithm"):
        having = [form for form in forms if name in form.get("properties", {})]
        row = _row(name, having, definitions, backends)
        row = replace(row, key=prefix + name)
        inner = _inner(having[0]["properties"][name], definitions)
        key = str(inner)
        if inner and key in printed:
            yield replace(row, meaning=f"{row.meaning} Keys as in `{printed[key]}`.")
            continue
        yield row
        printed[key] = row.key
        seen: set[str] = set()  # the forms "object" and "list of objects" share most keys
        for mark in dict.fromkeys(mark for mark, _ in inner):
            sections = [_without(section, seen) for m, section in inner if m == mark]
            seen.update(key for section in sections for key in section["properties"])
            yield from _rows(sections, f"{row.key}{mark}.", definitions, row.backends)


def _without(section: Schema, seen: set[str]) -> Schema:
    properties = section.get("properties", {})
    return {**section, "properties": {k: v for k, v in properties.items() if k not in seen}}


def _row(name: str, forms: list[Schema], definitions: Schema, backends: tuple[str, ...]) -> Row:
    fragments = [form["properties"][name] for form in forms]
    section = any(_inner(fragment, definitions) for fragment in fragments)
    defaults = [_default(name, form, section) for form in forms]
    return Row(
        key=name,
        allowed="a section" if section else allowed({"anyOf": fragments}, definitions),
        default=" or ".join(dict.fromkeys(defaults)),
        meaning=fragments[0].get("description", ""),
        backends=tuple(b for b in backends if b in fragments[0].get("backends", BACKENDS)),
    )


def _default(name: str, form: Schema, section: bool) -> str:
    if name in form.get("required", []):
        return "required"
    value = form["properties"][name].get("default")
    return "unset" if value is None or section else f"`{value_text(value)}`"


def _inner(fragment: Schema, definitions: Schema) -> list[tuple[str, Schema]]:
    """Return ``(mark, schema)`` of the sections under a key; ``[]`` marks items of a list."""
    if "$ref" in fragment:
        return [("", definitions[fragment["$ref"].rsplit("/", 1)[-1]])]
    found: list[tuple[str, Schema]] = []
    for form in [*fragment.get("anyOf", []), *fragment.get("oneOf", [])]:
        found.extend(_inner(form, definitions))
    for key, mark in (("items", "[]"), ("additionalProperties", ".<scope>")):
        if isinstance(fragment.get(key), Mapping):
            found.extend((mark + below, s) for below, s in _inner(fragment[key], definitions))
    return found
