# SPDX-License-Identifier: Apache-2.0
"""What our documents show is true: code runs, output is what is printed, configurations are valid."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.cli import main
from nncf.config.reading import read_file, read_options
from tests.documents.pages import PREPARATIONS, ROOT, Block, a_training_script, blocks, pages

WITH_PYTHON = [page for page in pages() if blocks(page, "python")]
JSON = [(page, block) for page in pages() for block in blocks(page, "json")]
COMMANDS = [
    (page, line.strip())
    for page in pages()
    for block in blocks(page, "sh")
    for line in block.text.splitlines()
    if line.strip() and not line.strip().startswith("#")
]
CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.json"))


def name_of(value: Any) -> str | None:
    return f"line{value.line}" if isinstance(value, Block) else None


def run(block: Block, page: str, space: dict[str, Any]) -> str:
    """Execute a block, with lines numbered as in its page; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * block.line + block.text, page, "exec"), space)
    return printed.getvalue()


@pytest.fixture
def _as_torchrun_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say in the environment that this is the only process of a distributed run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in address.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_as_torchrun_does")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run_and_print_what_is_shown(page: str) -> None:
    """The python blocks of a page run in order, and print the text block that follows."""
    for index, block in enumerate(blocks(page, "json")):  # "config.json": the page's first one
        Path("config.json" if not index else f"config{index}.json").write_text(block.text)
    space = {"__name__": "__main__", **PREPARATIONS.get(page, dict)()}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for block in blocks(page, "python"):
        printed = run(block, page, space)
        if block.prints is not None:
            assert doctest.OutputChecker().check_output(block.prints, printed, flags), (
                f"{page}, line {block.line}: shown\n{block.prints}\nprinted\n{printed}"
            )


@pytest.mark.parametrize(("page", "block"), JSON, ids=name_of)
def test_json_blocks_are_valid_configurations(page: str, block: Block) -> None:
    """Each json block is a configuration, or one algorithm of it, without anything to remark."""
    Path("block.json").write_text(block.text, encoding="utf-8")
    data = read_file("block.json")
    reading = read_options({"compression": data} if "algorithm" in data else data)
    assert reading.root.compression
    assert reading.remarks == ()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_example_configurations_are_valid(path: Path) -> None:
    """Each configuration among the examples loads, has an algorithm and nothing to remark."""
    assert NNCFConfig.from_json(path).options.compression
    assert read_options(read_file(path)).remarks == ()


def confidence(model: torch.nn.Module, loader: Any) -> float:
    """Stand for the accuracy of a model that nobody trained."""
    with torch.no_grad():
        return float(torch.stack([model(x).softmax(1).amax(1).mean() for x, _ in loader]).mean())


SCHEMES = {
    "digits_int8.json": {"8-bit symmetric"},
    "int8.json": {"8-bit symmetric"},
    "int8_vnni.json": {"8-bit symmetric"},
    "int8_distillation.json": {"8-bit symmetric"},
    "int8_per_tensor.json": {"8-bit symmetric"},
    "int8_mixed_preset.json": {"8-bit symmetric", "8-bit asymmetric"},
    "int8_transformer.json": {"8-bit symmetric", "8-bit asymmetric"},
    "int4_weights.json": {"4-bit symmetric", "8-bit symmetric"},
    "mixed_precision_autoq_staged.json": {f"{bits}-bit symmetric" for bits in (2, 4, 8)},
    "mixed_precision_hawq.json": {"4-bit symmetric", "8-bit symmetric"},
    "mixed_precision_hawq_staged.json": {"4-bit symmetric", "8-bit symmetric"},
    "mixed_precision_manual_staged.json": {"4-bit symmetric", "8-bit symmetric"},
    "sparsity_2_of_4_int8.json": {"8-bit symmetric"},
    "sparse_int8.json": {"8-bit symmetric"},
    "sparsity_rb_int8.json": {"8-bit symmetric"},
    "pruning_int8.json": {"8-bit symmetric"},
    "resnet18_cifar10_accuracy_aware.json": {"8-bit symmetric"},
    "binary_dorefa_int8.json": {"8-bit symmetric"},
}
CHANNELS = {"channels masked along axis 0", "channels masked along axis 1"}
CHANNELS |= {"channels masked along axes 0, 1"}
LEARNED_BIT = "1 bit, learned scale, threshold per channel"
MASKS = {
    "filter_pruning.json": CHANNELS,
    "pruning_int8.json": CHANNELS,
    "resnet18_cifar10_accuracy_aware.json": CHANNELS,
    "sparsity_70.json": {"mask"},
    "binary_xnor.json": {"1 bit, mean magnitude per channel", LEARNED_BIT},
    "binary_dorefa_int8.json": {"1 bit, mean magnitude per tensor", LEARNED_BIT},
    "sparse_int8.json": {"constant mask"},
    "sparsity_rb_int8.json": {"learned mask"},
    "sparsity_2_of_4_int8.json": {"2:4 mask along axis 1"},
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_example_configurations_compress_a_model(path: Path) -> None:
    """Each example configuration places the quantizers and masks that its comment speaks of."""
    config = NNCFConfig.from_json(path)
    config["log_dir"] = "."
    script = a_training_script(transformer="transformer" in path.name, wide="prun" in path.name)
    judges = {"criterion": torch.nn.CrossEntropyLoss(), "autoq_eval_fn": confidence}
    register_default_init_args(config, script["train_loader"], **judges)
    _, model = create_compressed_model(script["model"], config)
    every = [insert.op for insert in model.compression.layout]
    ops = [op for op in every if op.algorithm == "quantization"]
    found, expected = {f"{op.bits}-bit {op.mode}" for op in ops}, SCHEMES.get(path.name, set())
    assert found == expected or ("autoq" in path.name and found < expected)
    assert {str(op) for op in every if op not in ops} == MASKS.get(path.name, set())
    assert every
    if not ops:
        return
    halved = {op.half_range for op in ops if op.weight and op.bits == 8}
    sections = config["compression"]
    if isinstance(sections, dict) and config.options.target_device in ("ANY", "CPU"):
        assert halved <= {sections.get("overflow_fix") != "disable"}
    assert any(op.per_channel for op in ops) == ("per_tensor" not in path.name)
    assert not [i for i in model.compression.layout if "input of layer_norm" in i.reason]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_exist(page: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Our own commands run; verbs, scripts and modules that others name exist."""
    words = shlex.split(command, comments=True)
    if words[:3] == ["python", "-m", "nncf"] or words[0] == "nncf":
        for block in blocks(page, "json")[:1]:
            Path("config.json").write_text(block.text, encoding="utf-8")
        assert main(words[3 if words[0] == "python" else 1 :]) == 0
        assert capsys.readouterr().out
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        verbs = [word for word in words[1:] if "=" not in word]
        assert [verb for verb in verbs if not re.search(rf"^{verb}:", makefile, re.MULTILINE)] == []
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
    elif words[0] in ("python", "torchrun"):
        scripts = [word for word in words if word.endswith(".py")]
        assert scripts == ["train.py"] or all((ROOT / script).is_file() for script in scripts)
    else:
        assert words[0] in ("pip", "git", "cd"), f"nobody checks {command!r}"


def test_wrong_output_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A page whose shown output differs from the printed one fails its test."""
    (tmp_path / "page.md").write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    monkeypatch.setattr("tests.documents.pages.ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md, line 1"):
        test_python_blocks_run_and_print_what_is_shown("page.md")


def test_the_figure_is_the_same_everywhere() -> None:
    """README and how-it-works show one figure, and the README stays a page or two."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [block.text for block in blocks("README.md", "") if "NNCFConfig──▶" in block.text]
    explained = [b.text for b in blocks("docs/how-it-works.md", "") if "NNCFConfig──▶" in b.text]
    assert len(shown) == 1
    assert shown == explained
    assert len(readme.splitlines()) <= 200


@pytest.mark.parametrize("page", pages())
def test_programs_named_in_a_page_exist(page: str) -> None:
    """Every benchmark or tool that a page names is a file of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    modules = [name.replace(".", "/") + ".py" for name in re.findall(r"-m (benchmarks\.\w+)", text)]
    scripts = re.findall(r"python ((?:tools|examples|benchmarks)/[\w/]+\.py)", text)
    assert [name for name in modules + scripts if not (ROOT / name).is_file()] == []
