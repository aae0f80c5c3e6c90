# SPDX-License-Identifier: Apache-2.0
"""Write files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nncf.errors import ExportError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the same folder; on success it becomes ``path``.

    On any exception the temporary file is removed and ``path`` stays as it was. The folder is
    made if it is missing. Raises ExportError when it cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
    except OSError as error:
        raise ExportError(
            f"Cannot write {str(path)!r}: {error.strerror}. Give a path in a folder that you may write to."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
