# SPDX-License-Identifier: Apache-2.0
"""Sentences about options: what a JSON schema fragment allows, and what a wrong value broke.

Both are read off the JSON schema that pydantic derives from an Options class, so a message, the
option tables of the documents and the command line can never disagree about what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from nncf.errors import ConfigError, hint

Part = str | int
"""One step of a JSON path: a key or an index."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong (or worth a remark) and where: ``path`` is a JSON path."""

    path: tuple[Part, ...]
    text: str

    def __str__(self) -> str:
        return f"{path_text(self.path)}{self.text}" if self.path else self.text.lstrip(" :")


class RulesBroken(ValueError):  # never reaches a caller; it carries Problems
    """Raised inside pydantic's validation to carry several Problems out of it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


def path_text(path: Iterable[Part]) -> str:
    """Return a JSON path as text: ``compression[0].weights.bits``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def value_text(value: Any, limit: int = 80) -> str:
    """Return ``value`` as it would stand in JSON, cut to ``limit`` characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def raise_problems(problems: Sequence[Problem], source: str = "") -> None:
    """Raise one ConfigError that lists ``problems``; do nothing when there are none."""
    if not problems:
        return
    lines = [str(problem) for problem in problems]
    if len(lines) == 1:
        raise ConfigError(lines[0] + (f" (in {source})" if source else ""))
    where = f" in {source}" if source else " in the configuration"
    raise ConfigError("\n".join([*lines, f"{len(lines)} problems{where}."]))


# --------------------------------------------------------------------------- what is allowed


def allowed(fragment: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return in words what ``fragment`` of a JSON schema allows: ``a whole number ≥ 0``."""
    fragment = _resolve(fragment, definitions)
    if "words" in fragment:
        return str(fragment["words"])
    forms = [f for f in _forms(fragment, definitions) if f.get("type") != "null"]
    values = [value for form in forms for value in _values(form)]
    texts = [allowed_type(f, definitions) for f in forms if not _values(f)]
    if values:
        listed = ", ".join(dict.fromkeys(map(value_text, values)))
        texts.insert(0, listed if len(set(values)) == 1 else f"one of {listed}")
    return " or ".join(dict.fromkeys(texts))


def _values(fragment: Mapping[str, Any]) -> list[Any]:
    return [fragment["const"]] if "const" in fragment else list(fragment.get("enum", []))


def allowed_type(fragment: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return in words what a fragment without listed values allows."""
    if "words" in fragment:
        return str(fragment["words"])
    kind = str(fragment.get("type"))
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(fragment)
    if kind == "array":
        return _allowed_list(fragment, definitions)
    if kind == "object":
        keys = ", ".join(fragment.get("properties", {}))
        values = fragment.get("additionalProperties", {})
        return "an object " + (
            f"with keys {keys}" if keys else f"of names, each with {allowed(values, definitions)}"
        )
    return {"boolean": "true or false", "string": "a string"}.get(kind, "any value")


def _allowed_list(fragment: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "prefixItems" in fragment:
        parts = [allowed(item, definitions) for item in fragment["prefixItems"]]
        return "a list [" + ", ".join(parts) + "]"
    return "a list, each item " + allowed(fragment.get("items", {}), definitions)


def _bounds(fragment: Mapping[str, Any]) -> str:
    low, high = fragment.get("minimum"), fragment.get("maximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    parts = [f"{sign} {fragment[key]}" for key, sign in signs.items() if key in fragment]
    return " " + " and ".join(parts) if parts else ""


def _resolve(fragment: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in fragment:
        fragment = definitions[fragment["$ref"].rsplit("/", 1)[-1]]
    return fragment


def _forms(fragment: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the alternatives of ``fragment``; itself when it has just one form."""
    fragment = _resolve(fragment, definitions)
    options = fragment.get("anyOf") or fragment.get("oneOf")
    if not options or "words" in fragment:
        return [fragment]
    return [form for option in options for form in _forms(option, definitions)]


def _step(
    fragments: list[Mapping[str, Any]], part: Part, definitions: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return the fragments that describe ``part`` inside any of ``fragments``."""
    found: list[Mapping[str, Any]] = []
    for fragment in _unfolded(fragments, definitions):
        if isinstance(part, int):
            prefix = fragment.get("prefixItems", [])
            item = prefix[part] if part < len(prefix) else fragment.get("items")
        else:
            item = fragment.get("properties", {}).get(part, fragment.get("additionalProperties"))
        if isinstance(item, Mapping):
            found.extend(_forms(item, definitions))
    return found


def _unfolded(
    fragments: list[Mapping[str, Any]], definitions: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Add what fragments hide: forms under fixed words, and the one item that may be a list."""
    worded = [form for fragment in fragments for form in fragment.get("anyOf", [])]
    items = [fragment["items"] for fragment in fragments if fragment.get("items")]
    inner = [form for item in items for form in _forms(item, definitions)]
    return [*fragments, *worded, *(form for form in inner if form.get("type") == "object")]


# ------------------------------------------------------------------- what a wrong value broke


def translate(
    error: ValidationError, schema: Mapping[str, Any], data: Any, path: tuple[Part, ...] = ()
) -> list[Problem]:
    """Return the Problems behind a pydantic ``error`` about ``data``, which sits at ``path``."""
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        where = tuple(_in_data(item["loc"], data, missing=item["type"] == "missing"))
        discriminator = item.get("ctx", {}).get("discriminator", "")
        if item["type"].startswith("union_tag") and discriminator.startswith("'"):
            where += (discriminator.strip("'"),)
            item["input"] = item["input"].get(where[-1])
            item["type"] = "missing" if item["input"] is None else item["type"]
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, RulesBroken):
            found = [Problem((*where, *p.path), p.text) for p in cause.problems]
        else:
            found = [Problem(where, _sentence(item, schema, where))]
        problems.extend(Problem((*path, *p.path), p.text) for p in found)
    return problems


def _in_data(location: Sequence[Part], data: Any, *, missing: bool) -> Iterator[Part]:
    """Yield the steps of a pydantic location that exist in ``data``.

    A string or an object given where a list is meant counts as a list of one, and unions add
    the label of their form: neither leads a step further in what the user wrote.
    """
    for index, part in enumerate(location):
        if missing and index == len(location) - 1:
            yield part
        elif isinstance(part, int):
            if isinstance(data, list | tuple) and part < len(data):
                yield part
                data = data[part]
        elif isinstance(data, Mapping) and part in data:
            yield part
            data = data[part]


def _sentence(item: Any, schema: Mapping[str, Any], where: tuple[Part, ...]) -> str:
    definitions = schema.get("$defs", {})
    parents = _forms(schema, definitions)
    fragments = parents
    for part in where:
        parents, fragments = fragments, _step(fragments, part, definitions)
    if item["type"] == "extra_forbidden":
        parents = _unfolded(parents, definitions)
        keys = list(dict.fromkeys(k for p in parents for k in p.get("properties", {})))
        return f": unknown key.{hint(str(where[-1]), keys)} Keys here: {', '.join(keys)}."
    expected = allowed({"anyOf": fragments}, definitions) if fragments else "another value"
    if item["type"] == "missing":
        return f": required key is missing. Expected {expected}."
    value = item["input"]
    start = f" = {value_text(value)}: "
    if item["type"] == "nncf":
        return f"{start}{item['msg']}"
    near = ""
    if isinstance(value, str):
        choices = [choice for fragment in fragments for choice in _values(fragment)]
        near = hint(value, [choice for choice in choices if isinstance(choice, str)])
    return f"{start}expected {expected}.{near}"
