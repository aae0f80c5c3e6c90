# SPDX-License-Identifier: Apache-2.0
"""The house keeps its own rules: layers, imports, budgets, words, documents."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import docs, house

FRAMEWORKS = {"torch", "tensorflow", "keras", "onnx", "onnxruntime", "openvino"}
LIBRARIES = {"numpy", "pydantic", "networkx", "rich", "json5", "scipy", "sklearn"}


def run(code: str) -> str:
    """Run Python code in a process of its own and return what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_layer_knows_only_the_layers_below_it(root: Path) -> None:
    """No module imports from a layer above its own."""
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [linter, "--no-cache", "--config", root / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root / "src")},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_nncf_imports_no_framework() -> None:
    """After ``import nncf`` no framework and no other library is loaded."""
    loaded = run("import sys, nncf; print(*sys.modules)").split()
    assert "nncf" in loaded
    assert sorted(set(loaded) & (FRAMEWORKS | LIBRARIES)) == []


def test_importing_nncf_is_quick() -> None:
    """``import nncf`` takes less than a second even on a busy machine, best of three."""
    code = """
        import time
        start = time.perf_counter()
        import nncf
        print(time.perf_counter() - start)
    """
    assert min(float(run(code)) for _ in range(3)) < 1.0


def test_importing_nncf_prints_nothing() -> None:
    """``import nncf`` writes nothing to the standard output."""
    assert run("import nncf") == ""


def test_importing_nncf_patches_nothing() -> None:
    """Functions of torch are the same objects before and after ``import nncf.torch``."""
    code = """
        import torch

        def snapshot():
            rooms = [torch, torch.Tensor, torch.nn.functional, torch.nn.Module, torch.jit]
            return {(room.__name__, name): id(value) for room in rooms
                    for name, value in vars(room).items() if callable(value)}

        before = snapshot()
        import nncf.torch
        nncf.torch.create_compressed_model
        after = snapshot()
        print([key for key, value in before.items() if after.get(key) != value])
    """
    assert run(code) == "[]"


def test_import_order_makes_no_difference() -> None:
    """A model compressed after importing nncf first or torch first computes the same bits."""
    code = """
        {first}
        {second}
        import hashlib
        import torch.nn as nn
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        config = nncf.NNCFConfig.from_dict({{
            "input_info": {{"sample_size": [1, 1, 8, 8]}},
            "compression": {{"algorithm": "quantization"}},
        }})
        batches = [(torch.rand(4, 1, 8, 8), torch.zeros(4)) for _ in range(2)]
        config = nncf.register_default_init_args(config, batches)
        controller, model = nncf.create_compressed_model(model, config)
        output = model(torch.rand(4, 1, 8, 8)).detach().numpy().tobytes()
        print("digest", len(model.state_dict()), hashlib.sha256(output).hexdigest())
    """
    nncf_first = run(code.format(first="import nncf", second="import torch"))
    torch_first = run(code.format(first="import torch", second="import nncf"))
    assert "digest" in nncf_first
    assert nncf_first.splitlines()[-1] == torch_first.splitlines()[-1]


@pytest.mark.parametrize("title", house.SIZES)
def test_no_budget_is_exceeded(title: str) -> None:
    """Nothing is larger than the hard limit of its kind."""
    measures = house.SIZES[title]()
    assert measures, "measured nothing"
    assert [str(measure) for measure in house.over(measures)] == []


@pytest.mark.parametrize("title", house.RULES)
def test_no_rule_is_broken(title: str) -> None:
    """No line of ours breaks a rule that a machine can check."""
    assert house.RULES[title]() == []


BROKEN = {
    "framework imports outside the rooms of that name": (
        "src/nncf/graph/rogue.py",
        "def f():\n    from torch import nn\n",
    ),
    "suppressions without a reason": ("src/nncf/rogue.py", "x = 1  # no" + "qa: E501\n"),
    "notes to ourselves, paths of one machine": ("tests/rogue.py", "# TO" + "DO later\n"),
    "files without the licence line": ("tools/rogue.py", "x = 1\n"),
    "tests without a one-line claim": ("tests/rogue.py", "def test_x():\n    assert True\n"),
}


@pytest.fixture
def rogue_house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Return a function that builds a house of one file for the rules to look at."""

    def build(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        registry = tmp_path / "src/nncf/algorithms/__init__.py"
        registry.parent.mkdir(parents=True, exist_ok=True)
        registry.write_text(f"{house.LICENCE}\nNAMES = ['pruning']\n", encoding="utf-8")
        monkeypatch.setattr(house, "ROOT", tmp_path)
        monkeypatch.setattr(house, "PACKAGE", tmp_path / "src/nncf")
        house.python_files.cache_clear()

    yield build
    monkeypatch.undo()
    house.python_files.cache_clear()


@pytest.mark.parametrize("title", BROKEN)
def test_a_broken_rule_is_found(title: str, rogue_house: Callable[[str, str], None]) -> None:
    """Each rule reports a file that breaks it, so its silence means something."""
    rogue_house(*BROKEN[title])
    assert len(house.RULES[title]()) == 1


def test_an_exceeded_budget_is_found(rogue_house: Callable[[str, str], None]) -> None:
    """A file, a function and a class hierarchy that are too large are each reported once."""
    body = "    x = 1\n" * 61
    classes = "class A: ...\nclass B(A): ...\nclass C(B): ...\nclass D(C): ...\n"
    rogue_house("src/nncf/a/b/c/d/rogue.py", f"def f():\n{body}{classes}" + "x = 1\n" * 400)
    found = {title: len(house.over(rule())) for title, rule in house.SIZES.items()}
    assert list(found.values()) == [1, 1, 1, 1, 0]


def test_an_algorithm_named_in_two_files_is_found(
    rogue_house: Callable[[str, str], None],
) -> None:
    """An algorithm named in another file beside the registry exceeds the budget of one."""
    rogue_house("src/nncf/algorithms/pruning/plan.py", "x = 1\n")
    rogue_house("src/nncf/rogue.py", "from nncf.algorithms.pruning import plan\n")
    assert [measure.value for measure in house.over(house.algorithm_mentions())] == [2]


def test_option_tables_are_up_to_date() -> None:
    """The option tables in the documents say what the code accepts (make docs rewrites them)."""
    assert [path.name for path in docs.outdated()] == []


def test_links_in_documents_lead_somewhere() -> None:
    """No link between our documents leads to a missing file or heading."""
    assert list(docs.broken_links()) == []


def test_a_broken_link_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Links to a missing file or heading are reported, good ones and code are not."""
    (tmp_path / "README.md").write_text(
        "# Two words\n[a](#two-words) [b](gone.md) [c](README.md#gone) `[d](gone)`\n"
    )
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert list(docs.broken_links()) == ["README.md: gone.md", "README.md: README.md#gone"]
