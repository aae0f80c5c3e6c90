# SPDX-License-Identifier: Apache-2.0
"""The logger "nncf": what nncf says while it works. Nothing is said at import.

Messages go to stderr unless the application has configured logging, which then decides.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(levelname)s:%(name)s:%(message)s"

nncf_logger = logging.getLogger("nncf")


class _Console(logging.Handler):
    """Writes to stderr, but not when the root logger has handlers that write already."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr)  # noqa: T201  # this is the console


def set_log_level(level: int | str) -> None:
    """Show messages of this level and above (``logging.DEBUG`` …); undoes ``disable_logging``."""
    nncf_logger.disabled = False
    nncf_logger.setLevel(level)


@contextmanager
def only_warnings() -> Iterator[None]:
    """Inside, nothing below a warning is said: for work that is done over and over."""
    before = nncf_logger.level
    nncf_logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        nncf_logger.setLevel(before)


def disable_logging() -> None:
    """Be silent until ``set_log_level`` is called."""
    nncf_logger.disabled = True


def set_log_file(filename: str | Path) -> None:
    """Write all messages to a file as well, in place of the one named before."""
    handler = logging.FileHandler(filename, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    for old in [h for h in nncf_logger.handlers if isinstance(h, logging.FileHandler)]:
        nncf_logger.removeHandler(old)
        old.close()
    nncf_logger.addHandler(handler)


def _set_up() -> None:
    if any(isinstance(handler, _Console) for handler in nncf_logger.handlers):
        return
    console = _Console()
    console.setFormatter(logging.Formatter(FORMAT))
    nncf_logger.addHandler(console)
    if nncf_logger.level == logging.NOTSET:
        nncf_logger.setLevel(logging.INFO)


_set_up()
