# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what is JSON for us, and what is said when something is not."""

import json

import pytest

from nncf.config import NNCFConfig
from nncf.config.reading import read_file
from nncf.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{\n  "a": 1\n  "b": 2\n}', 'line 3, column 3: unexpected ". Is a comma'),
        ('{"a": [1, 2', "line 1, column 12: unexpected end of the file"),
        ('{"a": 1, "a": 2}', 'key "a" is written twice'),
        ('{"a": 1, "a": 2,}', 'key "a" is written twice'),
        ("", "the file is empty"),
        ("[1]", "expected an object {…}, found [1]"),
    ],
)
def test_syntax_errors_name_file_and_line(text, part, tmp_path):
    """A file that is no JSON is refused with its name and the place."""
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        NNCFConfig.from_json(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_file_errors_are_ours(tmp_path):
    """A missing file, a folder and a binary file give ConfigError with the path."""
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00\xd8")
    for path in (tmp_path / "none.json", tmp_path, binary):
        with pytest.raises(ConfigError, match=str(path)):
            read_file(path)


def test_comments_marks_and_links_are_read(tmp_path):
    """Comments, trailing commas, a byte order mark and symbolic links are fine."""
    path = tmp_path / "config.json"
    path.write_text('\ufeff// x\n{/* y */ "log_dir": "a//b",}\n', encoding="utf-8")
    link = tmp_path / "link.json"
    link.symlink_to(path)
    assert read_file(link) == {"log_dir": "a//b"}


def test_source_is_named(tmp_path):
    """Errors of a file's contents name the file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"target_device": "TPU"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf'^target_device = "TPU": .*\(in {path}\)$'):
        NNCFConfig.from_json(path)
