# SPDX-License-Identifier: Apache-2.0
"""What the layer and the arguments of a call say about the operation, as attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nncf.tensorflow.call_shapes import Shape, shape_attributes
from nncf.tensorflow.op_kinds import Step
from nncf.tensorflow.tracing import Call

_CONVOLUTIONS = frozenset(["convolution", "depthwise_convolution", "transposed_convolution"])


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a symbolic tensor; sizes that are not known count as 1."""
    return tuple(1 if size is None else int(size) for size in tensor.shape)


def attributes_of(
    call: Call, step: Step, layer: Any, shapes: tuple[Sequence[Shape], Sequence[Shape]]
) -> dict[str, Any]:
    """Return the attributes that an Operation carries (see ``Operation``).

    ``shapes`` are those of what enters the step, by port, and of what it computes.
    """
    kind = step.kind.name
    inputs, outputs = shapes
    found: dict[str, Any] = {"input_shapes": tuple(inputs), "output_shapes": tuple(outputs)}
    ends = (inputs[0] if inputs else (), outputs[0] if outputs else ())
    found |= shape_attributes(call, kind, ends)
    if kind in _CONVOLUTIONS and layer is not None:
        found |= _convolution(layer, step)
    if kind in ("concat", "split", "softmax", "log_softmax"):
        axis = getattr(call.operation, "axis", None)
        if isinstance(axis, int):
            found["axis"] = axis
    if kind == "interpolate":
        found["mode"] = getattr(call.operation, "interpolation", "nearest")
    return found


def _convolution(layer: Any, step: Step) -> dict[str, Any]:
    transposed = step.kind.name == "transposed_convolution"
    shared: dict[str, Any] = {
        "transposed": transposed,
        "padding": getattr(layer, "padding", "valid"),
    }
    if step.function == "pointwise_conv":
        *window, inputs, outputs = layer.pointwise_kernel.shape
        ones = (1,) * len(window)
        return shared | {
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": ones,
            "stride": ones,
            "dilation": ones,
            "groups": 1,
            "weight_axes": (len(window) + 1, len(window)),
        }
    kernel = layer.depthwise_kernel if step.function == "depthwise_conv" else layer.kernel
    *window, first, last = kernel.shape
    sizes: dict[str, Any] = {"kernel_size": tuple(window)}
    sizes["stride"] = _per_axis(layer.strides, len(window))
    sizes["dilation"] = _per_axis(layer.dilation_rate, len(window))
    if step.kind.name == "depthwise_convolution" and not hasattr(layer, "groups"):
        channels = {"in_channels": first, "out_channels": first * last, "groups": first}
        sizes["weight_axes"] = (len(window), None)  # seen as [*window, channels * multiplier]
    elif transposed:
        channels = {"in_channels": last, "out_channels": first, "groups": 1}
        sizes["weight_axes"] = (len(window), len(window) + 1)
    else:
        groups = getattr(layer, "groups", 1)
        sizes["weight_axes"] = (len(window) + 1, len(window))
        channels = {"in_channels": first * groups, "out_channels": last, "groups": groups}
    return shared | sizes | channels


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    return (int(value),) * rank if isinstance(value, int) else tuple(value)
