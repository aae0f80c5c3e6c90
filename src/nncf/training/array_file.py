# SPDX-License-Identifier: Apache-2.0
"""Nested state with arrays in one file: NumPy's ``.npz`` with the rest as JSON; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncf.compression.files import replacing

_TREE, _ARRAY = "tree", "array "
_MARK = "__array__"


def write_file(path: Path, state: Mapping[str, Any]) -> None:
    """Write dicts, lists, numbers, strings and arrays, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            name = f"{_ARRAY}{len(arrays)}"
            arrays[name] = value
            return {_MARK: name, "dtype": str(value.dtype)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value.item() if isinstance(value, np.generic) else value

    text = json.dumps(plain(dict(state)))
    # types that NumPy has from other packages (bfloat16) are written as their bytes
    stored = {n: a if a.dtype.kind != "V" else a.view(np.uint8) for n, a in arrays.items()}
    with replacing(path) as temporary, Path(temporary).open("wb") as file:
        np.savez(file, **{_TREE: np.frombuffer(text.encode(), np.uint8)}, **stored)


def read_file(path: Path) -> dict[str, Any]:
    """Return what ``write_file`` wrote. Raises OSError, ValueError or KeyError for other files."""
    with np.load(path, allow_pickle=False) as file:
        text = file[_TREE].tobytes().decode()
        arrays = {name: file[name] for name in file.files if name != _TREE}

    def whole(value: Any) -> Any:
        if isinstance(value, dict) and _MARK in value:
            return arrays[value[_MARK]].view(np.dtype(value["dtype"]))
        if isinstance(value, dict):
            return {key: whole(item) for key, item in value.items()}
        return [whole(item) for item in value] if isinstance(value, list) else value

    found: dict[str, Any] = whole(json.loads(text))
    return found
