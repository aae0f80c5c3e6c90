# SPDX-License-Identifier: Apache-2.0
"""What a mask of magnitude sparsity is, as a value; and where each goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from nncf.algorithms.magnitude_sparsity.options import numbers
from nncf.algorithms.weight_placement import PlacedWeight
from nncf.compression.layout import PRIORITY_SPARSITY, Insert, Skip
from nncf.graph.graph import Operation, Parameter

_CONVOLUTIONS = frozenset(["convolution", "depthwise_convolution", "deformable_convolution"])


@dataclass(frozen=True)
class MagnitudeMask:
    """A mask by size; with ``pattern`` "N:M" the groups lie along ``axis`` of the weight."""

    algorithm: ClassVar[str] = "magnitude_sparsity"
    tag: ClassVar[str] = "MASK"

    pattern: str | None = None
    axis: int = 1

    def to_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MagnitudeMask:
        return cls(**state)

    def __str__(self) -> str:
        return f"{self.pattern} mask along axis {self.axis}" if self.pattern else "mask"


def to_insert(weight: PlacedWeight, pattern: str | None) -> Insert | list[Skip]:
    """Return the Insert of a weight, or why the pattern cannot be applied to it."""
    mask = MagnitudeMask()
    if pattern is not None:
        found = {_grouped_axis(op, weight.parameter, pattern) for op in weight.operations}
        axes = {axis for axis in found if isinstance(axis, int)}
        if len(axes) != 1:
            reasons = [text for text in found if isinstance(text, str)]
            reason = reasons[0] if reasons else "its operations read it along different axes"
            return [Skip(str(point), f"no {pattern} pattern: {reason}") for point in weight.points]
        mask = MagnitudeMask(pattern, axes.pop())
    return Insert(
        weight.points,
        mask,
        weight.parameter.shape,
        priority=PRIORITY_SPARSITY,
        reason=weight.reason,
    )


def _grouped_axis(operation: Operation, parameter: Parameter, pattern: str) -> int | str:
    """Return the axis of a weight along which products are summed, or why there is no group.

    Sparse kernels skip products, so the zeros have to lie along the sum: the input channels of
    a linear layer, and of a convolution for each place of its kernel.
    """
    kind, rank, channels = operation.kind.name, len(parameter.shape), parameter.channel_axis
    if channels is None or kind not in (*_CONVOLUTIONS, "transposed_convolution", "linear"):
        return f"{kind} sums no products along an axis of its weight"
    axis = 2 * rank - 3 - channels if kind == "linear" else 1 - channels
    known = operation.attributes.get("weight_input_axes", {})
    if parameter.port in known:
        axis = known[parameter.port]
        if axis is None:
            return f"{kind} sums no products along an axis of its weight"
    size, group = parameter.shape[axis], numbers(pattern)[1]
    if kind == "transposed_convolution":  # its input channels of all groups stand together
        size //= operation.attributes["groups"]
    if size % group:
        return f"its input channels, {size} of them, are no multiple of {group}"
    return axis
