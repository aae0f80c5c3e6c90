# SPDX-License-Identifier: Apache-2.0
"""What the arguments of a call say about the operation: attributes, exact kind, weight axis."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nncf.graph.kinds import KINDS, Kind

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)


def _bound(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def attributes_of(kind: Kind, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that an Operation of this kind carries (see ``Operation``)."""
    if kind.name == "convolution":
        return _convolution_attributes(_bound(_CONVOLUTION, args, kwargs), transposed=False)
    if kind.name == "transposed_convolution":
        return _convolution_attributes(_bound(_TRANSPOSED, args, kwargs), transposed=True)
    if kind.name in _HAS_AXIS:
        axis = _axis_argument(kind.name, args, kwargs)
        return {} if axis is None else {"axis": axis}
    if kind.name == "transpose":
        return {
            "arguments": tuple(value for value in args[1:] if not isinstance(value, torch.Tensor))
        }
    if kind.name == "interpolate":
        return {"mode": kwargs.get("mode", "nearest")}
    return {}


def _axis_argument(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    for key in ("dim", "axis"):
        if isinstance(kwargs.get(key), int):
            return int(kwargs[key])
    position = 2 if kind == "split" else 1
    if len(args) > position and isinstance(args[position], int):
        return int(args[position])
    return 0 if kind in ("concat", "split") else None


def _convolution_attributes(bound: Mapping[str, Any], *, transposed: bool) -> dict[str, Any]:
    weight = bound["weight"]
    groups = bound.get("groups", 1)
    rank = weight.dim() - 2
    first, second = weight.shape[:2]
    in_channels, out_channels = (first, second * groups) if transposed else (second * groups, first)
    spread = functools.partial(_per_axis, rank=rank)
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": tuple(weight.shape[2:]),
        "stride": spread(bound.get("stride", 1)),
        "padding": bound.get("padding", 0)
        if isinstance(bound.get("padding", 0), str)
        else spread(bound.get("padding", 0)),
        "dilation": spread(bound.get("dilation", 1)),
        "groups": groups,
        "transposed": transposed,
    }


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


_HAS_AXIS = frozenset(["concat", "softmax", "log_softmax", "split"])
_PRODUCTS = frozenset(
    ["matmul", "mm", "bmm", "mv", "dot", "__matmul__", "_grouped_mm", "grouped_mm"]
)
_ADDED_PRODUCTS = frozenset(["addmm", "baddbmm"])
"""Products of their second and third argument."""


def refine(kind: Kind, attributes: Mapping[str, Any]) -> Kind:
    """Tell depthwise convolutions (one group per input channel) from others."""
    groups = attributes.get("groups", 1)
    if kind.name == "convolution" and groups > 1 and groups == attributes["in_channels"]:
        return KINDS["depthwise_convolution"]
    return kind


def refine_by_weights(name: str, kind: Kind, matrices: Sequence[int]) -> Kind:
    """Return ``linear`` for a matrix product of which one operand is a weight.

    ``matrices`` are the ports at which parameters of two or more axes enter.
    """
    factors = [port for port in matrices if port or name not in _ADDED_PRODUCTS]
    return KINDS["linear"] if kind.name == "matmul" and len(factors) == 1 else kind


def channel_axis(name: str, kind: Kind, rank: int, port: int) -> int | None:
    """Return the axis of output channels of a weight, None where there is none."""
    if rank < 2:
        return None
    if kind.name == "transposed_convolution":
        return 1
    if name in _PRODUCTS or name in _ADDED_PRODUCTS:
        left = port == (1 if name in _ADDED_PRODUCTS else 0)
        return rank - 2 if left else rank - 1
    return 0
