# SPDX-License-Identifier: Apache-2.0
"""Packed files without their tensors: what their header says, and where every byte goes.

A packed file is a safetensors file. A dense tensor stands there under its own name; the parts
of a packed one under ``name::role``. One entry of the metadata, ``nncf``, describes the rest::

    {"version": 1, "separator": "::", "same": {"head.weight": "embedding.weight"},
     "tensors": {"conv.weight": {"form": "bitmask", "dtype": "F32", "shape": [64, 3, 7, 7]}}}

``same`` names tensors that share their memory with another. The separator gets longer until no
tensor's name contains it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncf.compression.forms import DENSE, FORMS
from nncf.compression.packed_tensor import DTYPES
from nncf.compression.sizes import Size, SizeTable
from nncf.errors import CheckpointError

KEY = "nncf"
VERSION = 1
_LENGTH = 8  # bytes that hold the length of the header's text
_LARGEST_HEADER = 100_000_000  # the limit that safetensors has too


@dataclass(frozen=True)
class Stored:
    """One array as the header has it: how it is to be seen, and the bytes that it takes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file: its size, the arrays by name, our description."""

    nbytes: int
    arrays: Mapping[str, Stored]
    description: Description | None

    def tensors(self) -> dict[str, list[str]]:
        """Return the names of the stored arrays of each tensor."""
        found: dict[str, list[str]] = {}
        for key in self.arrays:
            name = key if self.description is None else self.description.split(key)[0]
            found.setdefault(name, []).append(key)
        return found


@dataclass(frozen=True)
class Description:
    """What the metadata says: which tensors are packed and how, which are the same."""

    separator: str
    tensors: Mapping[str, Mapping[str, Any]]
    same: Mapping[str, str]

    def to_text(self) -> str:
        content: dict[str, Any] = {"version": VERSION, "separator": self.separator}
        content |= {"same": dict(self.same)} if self.same else {}
        content |= {"tensors": {name: dict(facts) for name, facts in self.tensors.items()}}
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> Description:
        """Raises ValueError with the reason when the text is not one of ``to_text``."""
        content = json.loads(text)
        if not isinstance(content, dict) or "version" not in content:
            raise ValueError("its description is damaged")
        if content["version"] != VERSION:
            raise ValueError(f"it has version {content['version']}, this release reads {VERSION}")
        separator, tensors = content.get("separator"), content.get("tensors")
        same = content.get("same", {})
        if not (isinstance(separator, str) and separator and _is_texts(same)):
            raise ValueError("its description is damaged")
        if not isinstance(tensors, dict) or not all(map(_is_entry, tensors.values())):
            raise ValueError("its description of the packed tensors is damaged")
        return cls(separator, tensors, same)

    def split(self, key: str) -> tuple[str, str]:
        """Return the name of the tensor to which a stored array belongs, and the array's role."""
        name, separator, role = key.rpartition(self.separator)
        return (name, role) if separator else (key, "")


def part_name(name: str, separator: str, role: str) -> str:
    """Return the name under which a part of a packed tensor is stored."""
    return f"{name}{separator}{role}"


def separator_for(names: Iterable[str]) -> str:
    """Return colons, two or more, that stand in no name (in a role there is none)."""
    separator, names = "::", list(names)
    while any(separator in name for name in names):
        separator += ":"
    return separator


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("form"), str)
        and value.get("dtype") in DTYPES
        and _is_shape(value.get("shape"))
        and type(value.get("axis", 0)) is int
        and type(value.get("lowest", 0)) is int
        and -256 < value.get("lowest", 0) < 256
        and type(value.get("bits", 8)) is int
        and 1 <= value.get("bits", 8) <= 8
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


# --- reading -------------------------------------------------------------------------------


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises CheckpointError when there is no such file, or it is none, or it is cut off.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            fits = size >= _LENGTH and length <= min(size - _LENGTH, _LARGEST_HEADER)
            text = file.read(length) if fits else b""
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}. Expected a file of save_packed."
        ) from error
    try:
        return _parse(text, size)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise not_packed(path, str(error)) from error


def not_packed(path: str | Path, reason: str) -> CheckpointError:
    """Return the error about a file that cannot be used, with the reason."""
    return CheckpointError(
        f"{path}: {reason}. Expected a file as save_packed wrote it; copy or save it again. "
        f"To see what a file holds: nncf size {path}"
    )


def _parse(text: bytes, size: int) -> Header:
    if not text.startswith(b"{"):
        raise ValueError("it is no safetensors file, or it is cut off")
    try:
        content = json.loads(text.decode())
    except ValueError as error:
        raise ValueError("the header of a safetensors file is damaged") from error
    metadata = content.pop("__metadata__", None) or {}
    arrays = {name: _stored(name, facts) for name, facts in content.items()}
    nbytes = _LENGTH + len(text)
    expected = nbytes + sum(array.nbytes for array in arrays.values())
    if size != expected:
        raise ValueError(f"it has {size} bytes where its header tells of {expected}")
    described = Description.from_text(metadata[KEY]) if KEY in metadata else None
    if described is not None:
        _check(described, arrays)
    return Header(nbytes, arrays, described)


def _stored(name: str, facts: Any) -> Stored:
    try:
        begin, end = facts["data_offsets"]
        dtype, shape = facts["dtype"], facts["shape"]
        if not (type(begin) is type(end) is int and _is_shape(shape) and isinstance(dtype, str)):
            raise ValueError  # noqa: TRY301 — all that is wrong with an entry has one message
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f'the entry of "{name}" in its header is damaged') from error
    if dtype in DTYPES and end - begin != DTYPES[dtype] * math.prod(shape):
        raise ValueError(f'"{name}" has {end - begin} bytes for {dtype} of shape {shape}')
    return Stored(dtype, tuple(shape), end - begin)


def _check(description: Description, arrays: Mapping[str, Stored]) -> None:
    """See that every array is a dense tensor or a part of a packed one, and none is missing."""
    parts: dict[str, set[str]] = {name: set() for name in description.tensors}
    names = set(parts)
    for key in arrays:
        name, role = description.split(key)
        if not role:
            names.add(key)
        elif name in parts:
            parts[name].add(role)
        else:
            raise ValueError(f'it holds "{key}", which its description does not know')
    for name, roles in parts.items():
        form = description.tensors[name]["form"]
        if form not in FORMS or form == DENSE:
            raise ValueError(
                f'"{name}" has the form "{form}"; this release reads {", ".join(FORMS)}'
            )
        if not FORMS[form].roles <= roles:
            missing = ", ".join(sorted(FORMS[form].roles - roles))
            raise ValueError(f'"{name}" in the form "{form}" lacks: {missing}')
    for alias, name in description.same.items():
        if name not in names or alias in names:
            raise ValueError(f'"{alias}" is said to be the same as "{name}"')


# --- sizes -----------------------------------------------------------------------------------


def size_table(path: str | Path) -> SizeTable:
    """Return where the bytes of a safetensors file go, read from its header alone.

    Raises CheckpointError as ``read_header`` does. Files of others have dense tensors only.
    """
    header = read_header(path)
    described = header.description or Description("::", {}, {})
    rows: dict[str, Size] = {}
    for name, keys in header.tensors().items():
        nbytes = sum(header.arrays[key].nbytes for key in keys)
        if name in described.tensors:
            rows[name] = _packed_size(name, described.tensors[name], nbytes)
        else:
            array = header.arrays[name]
            rows[name] = Size(name, array.shape, array.dtype, nbytes, nbytes, DENSE)
    for alias, name in described.same.items():
        rows[alias] = Size(alias, rows[name].shape, rows[name].dtype, 0, 0, f"same as {name}")
    return SizeTable(tuple(sorted(rows.values(), key=lambda row: row.name)), header.nbytes)


def _packed_size(name: str, facts: Mapping[str, Any], nbytes: int) -> Size:
    shape, dtype = tuple(facts["shape"]), facts["dtype"]
    return Size(name, shape, dtype, DTYPES[dtype] * math.prod(shape), nbytes, facts["form"])
