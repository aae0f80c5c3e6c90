# SPDX-License-Identifier: Apache-2.0
"""What a call does to shapes: how it rearranges its input, and which arguments are sizes.

A function that only rearranges is run once more on a contiguous tensor without memory (device
``meta``). Its result is a view, and a view's offset and strides say where each element comes
from, whatever the function and however its arguments are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nncf.graph.graph import Number
from nncf.graph.kinds import Kind
from nncf.torch.structure import tensors_in

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Shape = tuple[int, ...]
_NumberRule = Callable[[Arguments, dict[str, Any]], Iterator[Number]]

REARRANGING = frozenset(
    ["reshape", "squeeze", "unsqueeze", "transpose", "expand", "split", "slice", "identity"]
)


def shapes_of(
    func: Callable[..., Any],
    kind: Kind,
    arguments: Arguments,
    tensors: tuple[Sequence[Tensor], Any],
) -> dict[str, Any]:
    """Return the attributes of an Operation that speak of shapes (see ``Operation``).

    ``tensors`` are the call's tensor arguments by port, and its result.
    """
    inputs, result = tensors
    outputs = list(tensors_in(result))
    found: dict[str, Any] = {
        "input_shapes": tuple(tuple(tensor.shape) for tensor in inputs),
        "output_shapes": tuple(tuple(tensor.shape) for tensor in outputs),
    }
    if kind.name in REARRANGING:
        found["rearrangement"] = _rearrangement(func, arguments, found)
    name = getattr(func, "__name__", "")
    numbers = tuple(numbers_of(kind, name, arguments, found))
    if numbers:
        found["numbers"] = numbers
    axes = _reduced_axes(kind, name, arguments, found)
    if axes is not None:
        found["axes"] = axes
    if kind.name == "pad":
        args, kwargs = arguments
        found["mode"] = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    if kind.name == "channel_shuffle":
        args, kwargs = arguments
        found["groups"] = int(kwargs.get("groups", args[1] if len(args) > 1 else 1))
    return found


# --- rearrangement -------------------------------------------------------------------------------


def _rearrangement(
    func: Callable[..., Any], arguments: Arguments, shapes: dict[str, Any]
) -> tuple[tuple[np.ndarray[Any, Any], ...], ...] | None:
    """Return, per output and output axis, the index into the input along that axis.

    Each is an integer array [length of the output axis, rank of the input]: where the elements
    lie whose other output indices are 0. None when the result is no view of the first input.
    """
    source = torch.empty(shapes["input_shapes"][0], device="meta")
    results = moved(func, arguments, source)
    if results is None or [tuple(r.shape) for r in results] != list(shapes["output_shapes"]):
        return None
    lines = [lines_of(result, source) for result in results]
    return None if None in lines else tuple(line for line in lines if line is not None)


def moved(func: Callable[..., Any], arguments: Arguments, source: Tensor) -> list[Tensor] | None:
    """Return what a call makes of ``source`` in the place of its first tensor; None if it cannot."""
    first = [True]

    def stand_in(tensor: Tensor) -> Tensor:
        if first.pop() if first else False:
            return source
        return tensor.to("meta")

    try:
        args, kwargs = pytree.tree_map_only(Tensor, stand_in, arguments)
        return list(tensors_in(func(*args, **kwargs)))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
        return None


def lines_of(view: Tensor, source: Tensor) -> tuple[np.ndarray[Any, Any], ...] | None:
    if view is not source and view._base is not source:
        return None
    if 0 in view.shape or not source.dim():
        return None
    offset = view.storage_offset()
    lines = []
    for length, stride in zip(view.shape, view.stride(), strict=True):
        flat = offset + stride * np.arange(length)
        lines.append(np.stack(np.unravel_index(flat, tuple(source.shape)), axis=-1))
    return tuple(lines) if _separable(lines, tuple(source.shape)) else None


def _separable(lines: Sequence[np.ndarray[Any, Any]], shape: Shape) -> bool:
    """Tell whether each index into the input is the sum of what the output axes contribute."""
    if not lines:
        return True
    origin = lines[0][0]
    farthest = origin + sum((line - origin).max(axis=0) for line in lines)
    return bool((farthest < np.array(shape)).all())


# --- arguments that are sizes --------------------------------------------------------------------


def numbers_of(
    kind: Kind, name: str, arguments: Arguments, shapes: dict[str, Any]
) -> Iterator[Number]:
    """Yield the numbers among a call's arguments that may follow from the sizes of tensors."""
    rule = _NUMBERS.get(name) or _NUMBERS_OF_KINDS.get(kind.name)
    if rule is not None:
        yield from rule(arguments, shapes)


def _scale(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:  # noqa: ARG001  # a rule's signature
    """Yield a factor or divisor that is a number, or a tensor without axes that is not trained."""
    args, kwargs = arguments
    path: tuple[str | int, ...] = ("args", 1) if len(args) > 1 else ("kwargs", "other")
    value = args[1] if len(args) > 1 else kwargs.get("other")
    if isinstance(value, Tensor) and not value.dim() and not value.requires_grad:
        value = value.item()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield Number(path, value, "scale")


def _one(arguments: Arguments, position: int, key: str, meaning: str) -> Iterator[Number]:
    args, kwargs = arguments
    if len(args) > position:
        yield Number(("args", position), int(args[position]), meaning)
    elif key in kwargs:
        yield Number(("kwargs", key), int(kwargs[key]), meaning)


def _sizes(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
    """Yield the sizes of view, reshape and expand: one by one, or as one sequence."""
    (args, kwargs), made = arguments, shapes["output_shapes"][0]
    key = next((key for key in ("size", "shape") if key in kwargs), None)
    if key is not None:
        yield from _lengths([("kwargs", key, k) for k in range(len(made))], kwargs[key], made)
    elif len(args) > 1 and isinstance(args[1], (tuple, list)):
        yield from _lengths([("args", 1, k) for k in range(len(made))], args[1], made)
    else:
        yield from _lengths([("args", 1 + k) for k in range(len(made))], args[1:], made)


def _lengths(
    paths: Sequence[tuple[str | int, ...]], sizes: Sequence[Any], made: Shape, first: int = 0
) -> Iterator[Number]:
    for place, (path, value) in enumerate(zip(paths, sizes, strict=False)):
        if isinstance(value, int) and value > 1:
            yield Number(path, value, "length", first + place)
        elif isinstance(value, int) and value == -1:
            yield Number(path, made[first + place], "open", first + place)


def _unflattened(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
    args, kwargs = arguments
    rank = len(shapes["input_shapes"][0])
    dim = kwargs["dim"] if "dim" in kwargs else args[1]
    path: tuple[str | int, ...] = ("kwargs", "sizes") if "sizes" in kwargs else ("args", 2)
    sizes = kwargs["sizes"] if "sizes" in kwargs else args[2]
    paths = [(*path, place) for place in range(len(sizes))]
    yield from _lengths(paths, sizes, shapes["output_shapes"][0], dim % rank)


def _pieces(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
    """Yield the sizes of split: a list of one for each piece, or one for all."""
    args, kwargs = arguments
    rank = len(shapes["input_shapes"][0])
    dim = kwargs["dim"] if "dim" in kwargs else (args[2] if len(args) > 2 else 0)
    keys = ("split_size_or_sections", "split_size", "split_sizes")
    key = next((key for key in keys if key in kwargs), None)
    path: tuple[str | int, ...] = ("args", 1) if key is None else ("kwargs", key)
    sizes = args[1] if key is None else kwargs[key]
    if isinstance(sizes, int):
        yield Number(path, sizes, "length", dim % rank)
    else:
        for port, size in enumerate(sizes):
            yield Number((*path, port), int(size), "length", dim % rank, port)


def _indices(fixed_axis: int | None = None) -> _NumberRule:
    """Return the rule of functions that split a tensor before given indices."""

    def rule(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
        args, kwargs = arguments
        keys = ("indices_or_sections", "indices", "sections")
        key = next((key for key in keys if key in kwargs), None)
        path: tuple[str | int, ...] = ("args", 1) if key is None else ("kwargs", key)
        values = args[1] if key is None else kwargs[key]
        axis = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        axis = (axis if fixed_axis is None else fixed_axis) % len(shapes["input_shapes"][0])
        if isinstance(values, (tuple, list)):
            for place, value in enumerate(values):
                if value:
                    yield Number((*path, place), int(value), "position", axis)

    return rule


def _narrowed(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
    args, kwargs = arguments
    names = ("input", "dim", "start", "length")
    paths = {name: ("args", place) for place, name in enumerate(names[: len(args)])}
    paths.update({name: ("kwargs", name) for name in kwargs})
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    axis = values["dim"] % len(shapes["input_shapes"][0])
    if isinstance(values["start"], int):
        yield Number(paths["start"], values["start"], "position", axis)
    yield Number(paths["length"], int(values["length"]), "length", axis)


def _sliced(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
    """Yield the bounds of slices in ``tensor[…]``; with steps only whole axes are followed."""
    args, _ = arguments
    whole = args[1] if isinstance(args[1], tuple) else (args[1],)
    rank = len(shapes["input_shapes"][0])
    taken = sum(1 for item in whole if item is not None and item is not Ellipsis)
    axis = 0
    for place, item in enumerate(whole):
        if item is Ellipsis:
            axis += rank - taken
        elif item is not None:
            if isinstance(item, slice):
                path = ("args", 1, place) if isinstance(args[1], tuple) else ("args", 1)
                bounds = ("start", "stop") if item.step in (None, 1) else ()
                for bound in bounds:
                    value = getattr(item, bound)
                    if isinstance(value, int) and value != 0:
                        yield Number((*path, bound), value, "position", axis)
            axis += 1


def _padding(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
    args, kwargs = arguments
    path: tuple[str | int, ...] = ("kwargs", "pad") if "pad" in kwargs else ("args", 1)
    values = kwargs["pad"] if "pad" in kwargs else args[1]
    rank = len(shapes["input_shapes"][0])
    for place, value in enumerate(values):
        meaning = "padding_after" if place % 2 else "padding_before"
        yield Number((*path, place), int(value), meaning, rank - 1 - place // 2)


def _normalized(arguments: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
    args, kwargs = arguments
    path: tuple[str | int, ...] = ("args", 1) if len(args) > 1 else ("kwargs", "normalized_shape")
    values = args[1] if len(args) > 1 else kwargs["normalized_shape"]
    first = len(shapes["input_shapes"][0]) - len(values)
    for place, value in enumerate(values):
        yield Number((*path, place), int(value), "input_length", first + place)


def _features(_: Arguments, shapes: dict[str, Any]) -> Iterator[Number]:
    """Yield what an instance norm without parameters remembers of its input, only to compare."""
    yield Number(("num_features",), shapes["input_shapes"][0][1], "features", 1)


def _groups(position: int, key: str) -> _NumberRule:
    return lambda arguments, _: _one(arguments, position, key, "groups")


_NUMBERS: dict[str, _NumberRule] = {
    **dict.fromkeys(("view", "reshape", "expand"), _sizes),
    "unflatten": _unflattened,
    **dict.fromkeys(("split", "split_with_sizes"), _pieces),
    "tensor_split": _indices(),
    **{f"{letter}split": _indices(axis) for letter, axis in (("v", 0), ("h", 1), ("d", 2))},
    "narrow": _narrowed,
    "__getitem__": _sliced,
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized),
    "group_norm": _groups(1, "num_groups"),
    "instance_norm": _features,
}

_NUMBERS_OF_KINDS: dict[str, _NumberRule] = {
    "pad": _padding,
    **dict.fromkeys(("convolution", "transposed_convolution"), _groups(6, "groups")),
    **dict.fromkeys(("multiply", "divide"), _scale),
}

# --- axes that an operation works along ----------------------------------------------------------

_ALONG_AXES = frozenset(
    ["mean", "sum", "reduce_max", "norm", "variance", "l2_norm", "softmax", "log_softmax", "roll"]
)


def _reduced_axes(
    kind: Kind, name: str, arguments: Arguments, shapes: dict[str, Any]
) -> tuple[int, ...] | None:
    """Return the axes of the first input that are reduced or normalised; all where none is named."""
    if kind.name not in _ALONG_AXES:
        return None
    args, kwargs = arguments
    rank = len(shapes["input_shapes"][0])
    is_second = kind.name in ("norm", "l2_norm") or name == "roll"
    position = 2 if is_second else 1
    given = kwargs.get("dim", kwargs.get("axis", kwargs.get("dims")))
    if given is None and len(args) > position and not isinstance(args[position], bool):
        given = args[position]
    if given is None:
        given = {"l2_norm": 1, "softmax": -1}.get(kind.name)
    if isinstance(given, int):
        given = (given,)
    if not isinstance(given, (tuple, list)) or not given:
        return tuple(range(rank))
    return tuple(sorted(axis % rank for axis in given)) if rank else ()
