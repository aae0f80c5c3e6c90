# SPDX-License-Identifier: Apache-2.0
"""Keep the documents true: option tables come from the code, links lead somewhere.

A document asks for a table with a pair of comments; what stands between them is rewritten::

    <!-- options: nncf.algorithms.quantization.QuantizationOptions -->
    <!-- end of options -->

``python tools/docs.py`` rewrites the tables and checks the links, ``--check`` writes nothing.
The exit status is 1 when a link is broken or, with ``--check``, a table is out of date.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- options: (?P<path>[\w.]+) -->\n).*?(<!-- end of options -->)", re.DOTALL)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ +(?P<title>.+?) *#*$", re.MULTILINE)


def documents() -> list[Path]:
    """Return every markdown file that is ours."""
    patterns = ("*.md", "docs/**/*.md", "examples/**/*.md", "changelog.d/*.md")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def with_tables(text: str) -> str:
    """Return ``text`` with each option table as the code says it is today."""
    examples = [match.span() for match in FENCE.finditer(text)]

    def renew(match: re.Match[str]) -> str:
        if any(start < match.start() < end for start, end in examples):
            return match[0]
        return f"{match[1]}\n{_table(match['path'])}\n{match[3]}"

    return TABLE.sub(renew, text)


def _table(path: str) -> str:
    from nncf.options import option_table

    module, name = path.rsplit(".", 1)
    return option_table(getattr(importlib.import_module(module), name))


def outdated() -> dict[Path, str]:
    """Return the documents whose tables differ from the code, with the text they should have."""
    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    return {path: new for path, old in texts.items() if (new := with_tables(old)) != old}


def broken_links() -> Iterator[str]:
    """Yield ``file: target`` for each link inside the project that leads nowhere."""
    for path in documents():
        text = CODE.sub("", FENCE.sub("", path.read_text(encoding="utf-8")))
        for match in LINK.finditer(text):
            target, _, anchor = match["target"].partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            aim = (path.parent / target).resolve() if target else path
            if not aim.exists() or (anchor and anchor not in anchors(aim)):
                yield f"{path.relative_to(ROOT).as_posix()}: {match['target']}"


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a markdown file."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    found: list[str] = []
    for match in HEADING.finditer(text):
        anchor = re.sub(r"[^\w\- ]", "", match["title"].lower()).replace(" ", "-")
        again = sum(1 for item in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", item))
        found.append(f"{anchor}-{again}" if again else anchor)
    return set(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = outdated()
    for path, text in stale.items():
        print(f"{'out of date' if check else 'rewrote'}: {path.relative_to(ROOT).as_posix()}")
        if not check:
            path.write_text(text, encoding="utf-8")
    broken = list(broken_links())
    for line in broken:
        print(f"leads nowhere: {line}")
    print(f"{len(documents())} documents looked at")
    return 1 if broken or (check and stale) else 0


if __name__ == "__main__":
    sys.exit(main())
