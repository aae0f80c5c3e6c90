# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of a whole configuration, put together from the Options classes."""

from __future__ import annotations

from typing import Any

from nncf import algorithms
from nncf.config.root import RootOptions

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of today's configurations.

    Keys of earlier releases, which are read with a warning, are not in it.
    """
    root = RootOptions.model_json_schema()
    definitions: dict[str, Any] = root.pop("$defs", {})
    properties = root["properties"]
    choices = []
    for name in algorithms.names():
        schema = algorithms.options_class(name).model_json_schema()
        definitions.update(schema.pop("$defs", {}))
        definitions[schema["title"]] = schema
        choices.append(
            {
                "if": {"properties": {"algorithm": {"const": name}}},
                "then": {"$ref": f"#/$defs/{schema['title']}"},
            }
        )
    definitions["Algorithm"] = {
        "type": "object",
        "required": ["algorithm"],
        "properties": {"algorithm": {"enum": list(algorithms.names())}},
        "allOf": choices,
    }
    for key, item in (("compression", "Algorithm"), ("input_info", "InputInfo")):
        one = {"$ref": f"#/$defs/{item}"}
        properties[key] = {
            "description": properties[key]["description"],
            "anyOf": [one, {"type": "array", "items": one}],
        }
    return {
        "$schema": DIALECT,
        "title": "nncf configuration",
        "description": "Keys that are not listed belong to the training script and are kept.",
        "type": "object",
        "properties": properties,
        "$defs": definitions,
    }
