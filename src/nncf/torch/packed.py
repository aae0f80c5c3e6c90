# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints: the tensors of a model in a safetensors file, each in its smallest form."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nncf.compression.files import replacing
from nncf.compression.forms import DENSE, entry, pack, unpack
from nncf.compression.packed_file import (
    KEY,
    Description,
    SizeTable,
    not_packed,
    part_name,
    read_header,
    separator_for,
    size_table,
)
from nncf.compression.packed_tensor import CodeGrid, Packed, Part, Plain, Words
from nncf.errors import ExportError, MissingDependency, UnsupportedFormat
from nncf.torch.intercept import compression_of

_LOGGER = logging.getLogger("nncf")

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
}
_FROM_NAME = {name: dtype for dtype, name in _DTYPES.items()}
_WORDS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def save_packed(model: nn.Module | Mapping[str, Any], path: str | Path) -> SizeTable:
    """Write a model, or its state dict, so that sparse and quantized weights take little space.

    Each tensor takes its smallest form: as it is; as a bit for each element and the elements
    that are not zero; as codes of 1 to 8 bits and their steps, where a stripped model says on
    which grid a weight lies; as both; or as the numbers of few values. Every form gives back every
    bit, negative zeros and NaN included. Tensors that share their memory are stored once. The file
    is written as a whole or not at all. Strip a compressed model before: its weights are not yet
    what they will be.

    Returns the table of sizes, whose total is the size of the file.

    Raises UnsupportedFormat for what is no dense tensor in memory, ExportError when the file
    cannot be written, MissingDependency without safetensors.

    Example::

        print(nncf.torch.save_packed(controller.strip(), "model.safetensors"))
        model.load_state_dict(nncf.torch.load_packed("model.safetensors"))
    """
    library = _safetensors()
    grids = _grids(model) if isinstance(model, nn.Module) else {}
    state = model.state_dict() if isinstance(model, nn.Module) else model
    _check(state)
    same = _same(state)
    separator = separator_for(state)
    described: dict[str, Mapping[str, Any]] = {}
    arrays: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if name in same:
            continue
        value = _in_memory(tensor)
        plain = Plain(_words(value), _DTYPES[value.dtype], tuple(value.shape), grids.get(name, ()))
        packed = pack(name, plain)
        if packed.form == DENSE:
            arrays[name] = _alone(value, storages)
            continue
        described[name] = entry(packed, plain.dtype, plain.shape)
        for role, part in packed.parts.items():
            arrays[part_name(name, separator, role)] = _tensor(part)
    metadata = {KEY: Description(separator, described, same).to_text()}
    with replacing(path) as temporary:
        try:
            library.torch.save_file(arrays, temporary, metadata=metadata)
        except (library.SafetensorError, OSError) as error:
            raise ExportError(
                f"Cannot write {str(path)!r}: {error}. A file that stood there is unchanged. "
                "Expected room for the file on that disk."
            ) from error
    return size_table(path)


def load_packed(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict that ``save_packed`` wrote, equal in every bit, on the processor.

    Dense tensors are mapped from the file and read when they are used; writing to them does not
    change the file. Tensors that shared their memory are one tensor again.

    Raises CheckpointError when the file is missing, damaged or of another kind.
    """
    library = _safetensors()
    header = read_header(path)
    description = header.description
    if description is None:
        raise not_packed(path, "it is a safetensors file of another program")
    state: dict[str, Tensor] = {}
    try:
        with library.safe_open(path, framework="pt") as file:
            for name, keys in header.tensors().items():
                if name in description.tensors:
                    state[name] = _unpacked(name, description, keys, file)
                else:
                    state[name] = file.get_tensor(name)
    except (library.SafetensorError, OSError, ValueError) as error:
        raise not_packed(path, str(error)) from error
    return state | {alias: state[name] for alias, name in description.same.items()}


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingDependency("safetensors", "torch", "A packed checkpoint") from error
    return safetensors


# --- what is to be stored ------------------------------------------------------------------


def _check(state: Any) -> None:
    """Refuse what cannot come back as it was."""
    if not isinstance(state, Mapping):
        raise UnsupportedFormat(
            f"save_packed() needs a model or its state dict, not {type(state).__name__}."
        )
    for name, value in state.items():
        if name == "__metadata__":
            reason = "has the name under which safetensors keeps what describes the file"
        elif not isinstance(name, str) or not isinstance(value, Tensor):
            reason = f"is {type(value).__name__}, not a tensor"
        elif value.layout != torch.strided or value.is_quantized:
            reason = f"is a tensor of the layout {value.layout} and the dtype {value.dtype}"
        elif value.device.type == "meta" or nn.parameter.is_lazy(value):
            reason = "has no values yet"
        elif value.dtype not in _DTYPES:
            reason = f"has the dtype {value.dtype}, which safetensors does not know"
        else:
            continue
        raise UnsupportedFormat(
            f"save_packed(): {name!r} {reason}. Expected dense tensors with values, such as "
            "model.state_dict() has. Leave it out, convert it, or keep it in another file."
        )


def _same(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for each tensor that is the same memory as one before it, the name of that one."""
    seen: dict[tuple[Any, ...], str] = {}
    same = {}
    for name, tensor in state.items():
        if not tensor.numel():
            continue
        view = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj())
        key = (tensor.device, tensor.data_ptr(), tensor.is_neg(), *view)
        first = seen.setdefault(key, name)
        if first != name:
            same[name] = first
    return same


def _alone(tensor: Tensor, storages: set[int]) -> Tensor:
    """Return the tensor, copied if another one is in the same memory: safetensors wants that."""
    address = tensor.untyped_storage().data_ptr()
    if address in storages:
        return tensor.clone()
    storages.add(address)
    return tensor


def _in_memory(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


def _grids(model: nn.Module) -> dict[str, tuple[CodeGrid, ...]]:
    """Return the grids on which a stripped model's weights lie, by the weights' names."""
    compression = compression_of(model)
    if compression is None:
        return {}
    grids: dict[str, tuple[CodeGrid, ...]] = {}
    for insert, names in compression.baked_parameters.items():
        code_grid = getattr(compression.ops[insert], "code_grid", None)
        if code_grid is None:
            continue
        step, lowest, axis = code_grid()
        grid = CodeGrid(
            step.detach().cpu().numpy().astype(np.float32),
            lowest.detach().cpu().numpy().astype(np.int64),
            axis,
        )
        for name in names:
            grids[name] = (*grids.get(name, ()), grid)
    if any(parameter.requires_grad for parameter in compression.parameters()):
        _LOGGER.warning(
            "save_packed() was given a model in training: its weights are stored as they are. "
            "strip() it first for the weights, and the small file, of the deployed model."
        )
    return grids


# --- tensors and words ---------------------------------------------------------------------


def _words(tensor: Tensor) -> Words:
    """Return the bits of a contiguous tensor, flat; they share its memory."""
    return tensor.reshape(-1).view(_WORDS[tensor.element_size()]).numpy()


def _tensor(part: Part) -> Tensor:
    words = torch.from_numpy(np.ascontiguousarray(part.words))
    return words.view(_FROM_NAME[part.dtype])


def _unpacked(name: str, description: Description, arrays: Iterable[str], file: Any) -> Tensor:
    facts = description.tensors[name]
    shape, dtype = tuple(facts["shape"]), facts["dtype"]
    found = {}
    for key in arrays:
        value = file.get_tensor(key)
        role = description.split(key)[1]
        found[role] = Part(_words(value), _DTYPES.get(value.dtype, ""))
    try:
        words = unpack(Packed(facts["form"], found, facts), dtype, shape)
    except (ValueError, TypeError) as error:
        raise ValueError(f'"{name}" is damaged: {error}') from error
    return torch.from_numpy(words).view(_FROM_NAME[dtype]).reshape(shape)
