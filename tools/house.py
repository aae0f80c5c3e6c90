# SPDX-License-Identifier: Apache-2.0
"""Measure the house against its budgets (docs/style.md) and say where a hard one is broken.

``python tools/house.py`` prints the report, ``--quiet`` only what is broken; the exit status is
1 when something is. Needs the standard library alone. tests/test_house.py calls the same rules.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "nncf"
FOLDERS = ("src", "tests", "tools", "examples", "benchmarks")

FILE_LINES = (250, 400)
FUNCTION_LINES = (40, 60)
MEDIAN_FUNCTION_LINES = 10
FOLDER_DEPTH = (2, 3)
INHERITANCE_DEPTH = (2, 3)

LICENCE = "# SPDX-License-Identifier: Apache-2.0"
# Which file or folder name allows which import.
FRAMEWORKS = {
    "torch": "torch",
    "torchvision": "torch",
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "onnx_ir": "onnx",
    "openvino": "openvino",
}
# One letter of each word stands in brackets so that this file does not break its own rule.
FORBIDDEN = re.compile(
    r"\b(?:[T]ODO|[F]IXME|[X]XX)\b|(?<![\w.~])/(?:home|root|Users|work|tmp|mnt|opt)/\w"
)
EXPLAINED = re.compile(
    r"#\s*(?:type:\s*ignore\[[\w, -]+\]|noqa:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)\s+\S"
)
SUPPRESSED = re.compile(r"#\s*(?:type:\s*ignore|noqa)\b")


@dataclass(frozen=True)
class Measure:
    """One measured thing: where it is, its size, and the aim and hard limit for such things."""

    where: str
    value: int
    aim: int
    hard: int

    def __str__(self) -> str:
        return f"{self.value:5d}  {self.where}  (aim {self.aim}, hard {self.hard})"


@cache
def python_files(*folders: str) -> tuple[Path, ...]:
    """Return the Python files of the named top-level folders (all of ours by default)."""
    found = [path for name in folders or FOLDERS for path in (ROOT / name).rglob("*.py")]
    return tuple(sorted(found))


def text_files() -> Iterator[Path]:
    """Yield every text file that is ours: code, documents, settings."""
    yield from python_files()
    for pattern in ("*.md", "*.toml", "*.yaml", "Makefile", "docs/**/*.md", "changelog.d/*.md"):
        yield from ROOT.glob(pattern)
    yield from (ROOT / "src").rglob("*.json")
    yield from (ROOT / "examples").rglob("*.json")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def file_lengths() -> list[Measure]:
    return [
        Measure(relative(path), len(path.read_text(encoding="utf-8").splitlines()), *FILE_LINES)
        for path in python_files()
    ]


def function_lengths() -> list[Measure]:
    """Measure every function, docstring included, decorators not."""
    found = []
    for path in python_files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                where = f"{relative(path)}:{node.lineno} {node.name}"
                found.append(Measure(where, lines, *FUNCTION_LINES))
    return found


def folder_depths() -> list[Measure]:
    folders = {path.parent for path in python_files("src") if PACKAGE in path.parents}
    return [
        Measure(relative(folder), len(folder.relative_to(PACKAGE).parts), *FOLDER_DEPTH)
        for folder in sorted(folders)
    ]


def inheritance_depths() -> list[Measure]:
    """Count our own classes from each class up to its oldest ancestor of ours, itself included.

    Bases are found by simple name, first in the class's own file, so two classes of one name
    in different files are not confused unless one is imported beside the other.
    """
    classes: dict[str, dict[str, ast.ClassDef]] = {}
    for path in python_files("src"):
        found = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
        classes[relative(path)] = {node.name: node for node in found}
    everywhere = {name: (file, node) for file in classes for name, node in classes[file].items()}

    def depth(file: str, node: ast.ClassDef, seen: frozenset[str]) -> int:
        above = [0]
        for base in node.bases:
            name = ast.unparse(base).split("[")[0].split(".")[-1]
            home = (file, classes[file][name]) if name in classes[file] else everywhere.get(name)
            if home and f"{home[0]}:{name}" not in seen:
                above.append(depth(*home, seen | {f"{home[0]}:{name}"}))
        return 1 + max(above)

    return [
        Measure(
            f"{file} {name}", depth(file, node, frozenset({f"{file}:{name}"})), *INHERITANCE_DEPTH
        )
        for file in classes
        for name, node in classes[file].items()
    ]


def algorithm_names() -> list[str]:
    """Return the names of the algorithms: folders beside the registry that the registry names."""
    registry = PACKAGE / "algorithms" / "__init__.py"
    strings = {node.value for node in ast.walk(parsed(registry)) if isinstance(node, ast.Constant)}
    return sorted(path.name for path in registry.parent.iterdir() if path.name in strings)


def algorithm_mentions() -> list[Measure]:
    """Count the files outside its folder that name an algorithm in code, per algorithm.

    Naming is importing from the folder or holding its name as a string; docstrings may name
    whatever helps. ``nncf/common`` is left out: its doors lead to wherever documents promise.
    """
    files: dict[str, list[str]] = {name: [] for name in algorithm_names()}
    for path in python_files("src"):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] == "common":
            continue
        for name in set(files) - ({parts[1]} if parts[0] == "algorithms" else set()):
            if any(_names(node, name) for node in ast.walk(parsed(path))):
                files[name].append("/".join(parts))
    return [
        Measure(f"{name}: {', '.join(found) or 'none'}", len(found), 1, 1)
        for name, found in files.items()
    ]


def _names(node: ast.AST, algorithm: str) -> bool:
    if isinstance(node, ast.Constant):
        return node.value == algorithm
    module = f"nncf.algorithms.{algorithm}"
    return any(f"{name}.".startswith(f"{module}.") for name in imported(node))


def imported(node: ast.AST) -> list[str]:
    """Return the full names of the modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def stray_framework_imports() -> list[str]:
    """Find imports of a framework in files that neither are nor lie in one of its name."""
    return [
        f"{relative(path)} imports {framework}: {ast.unparse(node)}"
        for path in python_files("src")
        for node in ast.walk(parsed(path))
        for framework in sorted({module.split(".")[0] for module in imported(node)})
        if framework in FRAMEWORKS
        and FRAMEWORKS[framework] not in path.relative_to(PACKAGE).with_suffix("").parts
    ]


def unexplained_suppressions() -> list[str]:
    """Find ``type: ignore`` and ``noqa`` without a code or without a reason after it."""
    found = []
    for path in python_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("# ruff: noqa"):
                found.append(f"{relative(path)}:{number} silences the whole file")
            elif SUPPRESSED.search(line) and not EXPLAINED.search(line):
                found.append(f"{relative(path)}:{number} {line.strip()[:80]}")
    return found


def forbidden_words() -> list[str]:
    """Find notes to ourselves and paths of one machine in anything that is ours."""
    return [
        f"{relative(path)}:{number} {line.strip()[:80]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]


def files_without_licence() -> list[str]:
    return [
        relative(path)
        for path in python_files()
        if (text := path.read_text(encoding="utf-8")) and not text.startswith(LICENCE)
    ]


def tests_without_claim() -> list[str]:
    """Find tests whose docstring is missing or longer than the one line that states the claim."""
    return [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in python_files("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not (claim := ast.get_docstring(node)) or "\n" in claim.strip()
    ]


SIZES: dict[str, Callable[[], list[Measure]]] = {
    "lines per file": file_lengths,
    "lines per function": function_lengths,
    "folder depth under nncf": folder_depths,
    "inheritance depth of our classes": inheritance_depths,
    "files naming an algorithm outside its folder": algorithm_mentions,
}
RULES: dict[str, Callable[[], list[str]]] = {
    "framework imports outside the rooms of that name": stray_framework_imports,
    "suppressions without a reason": unexplained_suppressions,
    "notes to ourselves, paths of one machine": forbidden_words,
    "files without the licence line": files_without_licence,
    "tests without a one-line claim": tests_without_claim,
}


def over(measures: list[Measure]) -> list[Measure]:
    """Return the measures beyond their hard limit."""
    return [measure for measure in measures if measure.value > measure.hard]


def report() -> Iterator[str]:
    """Yield the lines of the size report: per budget the spread and what is over its aim."""
    for title, measure in SIZES.items():
        measures = measure()
        values = [item.value for item in measures] or [0]
        aside = sorted((m for m in measures if m.value > m.aim), key=lambda m: -m.value)
        median = statistics.median(values)
        yield f"{title}: {len(measures)}, median {median:g}, largest {max(values)}, {len(aside)} over the aim"
        yield from (f"  {item}" for item in aside[:10])
    median = statistics.median([item.value for item in function_lengths()] or [0])
    if median > MEDIAN_FUNCTION_LINES:
        yield f"the median function has {median:g} lines, the aim is {MEDIAN_FUNCTION_LINES}"
    source = sum(item.value for item in file_lengths() if item.where.startswith("src/"))
    yield f"in all {source} lines of source in {len(python_files('src'))} files"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quiet", action="store_true", help="print only what is broken")
    if not parser.parse_args().quiet:
        print("\n".join(report()))
    broken = [f"{title}: {item}" for title, rule in SIZES.items() for item in over(rule())]
    broken += [f"{title}: {item}" for title, rule in RULES.items() for item in rule()]
    for line in broken:
        print(f"BROKEN {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
