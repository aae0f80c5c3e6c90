# SPDX-License-Identifier: Apache-2.0
"""Builds the C kernels of nncf with the machine's compiler, and keeps the result.

The sources include no header of PyTorch and the library is called with plain addresses, so one
compilation takes a quarter of a second and one library serves every release of PyTorch and
Python. It is kept in the user's cache folder under a name that tells source, flags, compiler
and processor apart.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

CACHE_VARIABLE = "NNCF_CACHE_DIR"
_COMMON = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# Tried in this order: what one compiler or processor does not know, the next line leaves out.
_VARIANTS = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-fopenmp",),
    ("-march=native", "-fopenmp-simd"),
    (),
)


class BuildError(Exception):
    """There is no compiler, or it refused the source; the message says which."""


def find_compiler() -> str:
    """Return the path of the C compiler: ``$CC`` or the first of cc, gcc, clang."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        if path:
            return path
    raise BuildError("no C compiler (cc, gcc, clang or $CC) was found")


def load(source: Path) -> ctypes.CDLL:
    """Return the library made of ``source``, from the cache or freshly built.

    Raises ``BuildError``. Safe when several processes do it at once: each builds under a name
    of its own and renames when done.
    """
    compiler = find_compiler()
    text = source.read_bytes()
    key = hashlib.sha256(
        b"\0".join([text, repr((_COMMON, _VARIANTS)).encode(), _identity(compiler).encode()])
    ).hexdigest()[:24]
    try:
        folder = cache_folder()
    except OSError:
        return _build_once(compiler, source)
    path = folder / f"{source.stem}-{key}.so"
    if not path.exists():
        build(compiler, source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # a file cut short, or a folder from which nothing may be executed
        return _build_once(compiler, source)


def cache_folder() -> Path:
    """Return a folder for built libraries that nobody but the user can write to.

    Raises ``OSError`` where there is none: a library that others can replace must not be loaded.
    """
    named = os.environ.get(CACHE_VARIABLE)
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nncf"
    folder = base.expanduser() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} is writable by others")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable")
    return folder


def _build_once(compiler: str, source: Path) -> ctypes.CDLL:
    """Build in a temporary folder that is gone as soon as the library is loaded."""
    with tempfile.TemporaryDirectory(prefix="nncf-") as folder:
        path = Path(folder) / f"{source.stem}.so"
        build(compiler, source, path)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError(f"the built library cannot be loaded: {error}") from error


def build(compiler: str, source: Path, path: Path) -> None:
    """Make the library ``path`` of ``source``; raises ``BuildError``."""
    complaint = ""
    for variant in _VARIANTS:
        part = path.with_suffix(f".{os.getpid()}.part")
        command = [compiler, *_COMMON, *variant, str(source), "-o", str(part), "-lm"]
        try:
            done = subprocess.run(  # noqa: S603 — the compiler is the user's own
                command, capture_output=True, text=True, timeout=120, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler} could not be run: {error}") from error
        if done.returncode == 0:
            part.replace(path)
            return
        part.unlink(missing_ok=True)
        complaint = complaint or done.stderr.strip()
    raise BuildError(f"{compiler} refused {source.name}: {complaint[:400]}")


def _identity(compiler: str) -> str:
    """Tell compilers and processors apart: code built for one may not run on another."""
    status = Path(compiler).stat()
    processor = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        processor += "".join(
            line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))
        )
    except OSError:
        pass
    return repr((compiler, status.st_size, status.st_mtime, platform.platform(), processor))
