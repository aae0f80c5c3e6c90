# SPDX-License-Identifier: Apache-2.0
"""The registry knows the algorithms, their options, and which can train."""

import ast
import sys
import types
from pathlib import Path

import pytest

from nncf import algorithms
from nncf.errors import ConfigError
from nncf.options import Options, option_table


@pytest.mark.parametrize("name", algorithms.names())
def test_options_of_every_algorithm(name):
    """Every algorithm has Options that carry its name and a table for the documents."""
    options = algorithms.options_class(name)
    assert issubclass(options, Options)
    assert options.model_fields["algorithm"].default == name
    lines = option_table(options).splitlines()
    assert lines[0] == "| Key | Allowed | Default | Meaning | Backends |"
    assert lines[2].startswith("| `algorithm` |")
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}


@pytest.mark.parametrize("name", algorithms.names())
def test_story_of_every_algorithm(name):
    """A folder opens with the idea, the formula and when to use it."""
    source = Path(algorithms.__file__).parent / name / "__init__.py"
    story = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
    for heading in ("The idea", "The formula", "When to use it"):
        assert heading in story


def test_names_and_aliases():
    """Aliases lead to today's name; unknown and refused names say what to write."""
    assert algorithms.options_class("experimental_quantization") is algorithms.options_class(
        "quantization"
    )
    with pytest.raises(ConfigError, match=r'"quant" is no algorithm\. Nearest: "quantization"'):
        algorithms.options_class("quant")
    with pytest.raises(ConfigError, match=r"is not offered: .* use"):
        algorithms.load("movement_sparsity")


def test_load_finds_the_algorithm(monkeypatch):
    """Load imports the folder's algorithm.py and returns its Algorithm, not an imported one."""
    from nncf.compression.algorithm import Algorithm

    module = types.ModuleType("nncf.algorithms.const_sparsity.algorithm")

    class Found(Algorithm):
        pass

    Found.__module__ = module.__name__
    module.Algorithm = Algorithm
    module.Found = Found
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert algorithms.load("const_sparsity") is Found


def test_load_explains_what_cannot_train_yet(monkeypatch):
    """A known algorithm without implementation is refused in words."""
    folder = types.ModuleType("nncf.algorithms.unwritten")
    folder.__path__ = []
    monkeypatch.setitem(sys.modules, folder.__name__, folder)
    monkeypatch.setattr(algorithms, "_OPTIONS", {"unwritten": "UnwrittenOptions"})
    with pytest.raises(ConfigError, match='"unwritten" cannot be trained with yet: this release'):
        algorithms.load("unwritten")


def test_load_does_not_hide_a_missing_package(monkeypatch):
    """An import that fails inside an algorithm is not taken for a missing algorithm."""

    def fail(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(algorithms.importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        algorithms.load("quantization")
