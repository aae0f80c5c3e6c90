# SPDX-License-Identifier: Apache-2.0
"""Configurations of every algorithm and era are accepted as they are."""

import json5
import jsonschema
import pytest

from nncf import algorithms
from nncf.config import NNCFConfig
from tests.config.published import EARLIER, TODAY


def read(tmp_path, text):
    """Write ``text`` to a file and read it as a configuration."""
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    return NNCFConfig.from_json(path)


@pytest.mark.parametrize("name", TODAY)
def test_today_is_accepted_silently(name, tmp_path, caplog):
    """A file in today's form is read without a remark, and its dict stays as written."""
    config = read(tmp_path, TODAY[name])
    assert caplog.messages == []
    assert dict(config) == json5.loads(TODAY[name])


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_is_accepted_with_advice(name, tmp_path, caplog):
    """A file of an earlier release is read, and what is written otherwise today is said."""
    config = read(tmp_path, EARLIER[name])
    assert caplog.messages
    assert dict(config) == json5.loads(EARLIER[name])


@pytest.mark.parametrize("name", TODAY)
def test_schema_accepts_today(name):
    """Whatever we read without a remark also fits the JSON schema that we print."""
    schema = NNCFConfig.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    config = json5.loads(TODAY[name])
    if name != "manual_bits":  # leaves out the type of the precision section, a documented default
        jsonschema.Draft202012Validator(schema).validate(config)


def test_every_algorithm_has_a_published_config():
    """No algorithm of the registry is missing from these files."""
    text = "".join(TODAY.values())
    assert [name for name in algorithms.names() if f'"{name}"' not in text] == []
