# SPDX-License-Identifier: Apache-2.0
"""What operations with weights, and matrix products, do to the labels of channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nncf.graph.channels import Axes, Ids, Labels, Need, Producer, Value
from nncf.graph.graph import Operation, Parameter

Inputs = Mapping[int, Value]

_COMPUTED = "its weight is computed in the forward"
_FIXED_INPUT = "its input keeps its channels"


def _weight(operation: Operation) -> Parameter | None:
    """Return the weight that is a parameter itself; None when it cannot be shortened."""
    found = [p for p in operation.parameters if p.port == 1 and p.direct and len(p.shape) > 1]
    return found[0] if found else None


def _produce(operation: Operation, labels: Labels, parameter: Parameter, axis: int) -> Ids:
    """Return the labels of the channels that a weight makes along one of its axes."""
    ids = labels.of_tensor(parameter.name, axis, parameter.shape[axis])
    labels.producers.append(Producer(operation.key, parameter.name, axis, ids))
    return ids


def _tie_bias(operation: Operation, inputs: Inputs, labels: Labels, out: Ids) -> None:
    for port, value in inputs.items():
        if port > 1 and len(value.shape) == 1 and value.shape[0] == len(out):
            bias = value.axes[0]
            if bias is None:
                labels.pin(out, operation.key, "its bias is computed in the forward")
            else:
                labels.tie(out, bias)


# --- convolutions --------------------------------------------------------------------------------


def _convolution(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    parameter = _weight(operation)
    value = inputs[0]
    batch_axes = len(value.shape) - len(operation.attributes["kernel_size"]) - 1
    channel = int(operation.attributes.get("input_channel_axis", batch_axes))
    if parameter is None:
        for other in inputs.values():
            labels.pin_value(other, operation.key, _COMPUTED)
        return None
    for axis, along in enumerate(value.axes):
        if axis >= batch_axes and axis != channel:
            labels.pin(along, operation.key, "it runs along it")
    groups = operation.attributes["groups"]
    out_axis, in_axis = weight_axes(operation)
    weight_in = (
        labels.fresh(1)  # a depthwise kernel that has no such axis
        if in_axis is None
        else labels.of_tensor(parameter.name, in_axis, parameter.shape[in_axis])
    )
    weight_out = _produce(operation, labels, parameter, out_axis)
    if groups == 1:
        _tie_or_pin(operation, labels, value.axes[channel], weight_in)
        out = weight_out
    else:
        out = _grouped(operation, labels, value.axes[channel], weight_in, weight_out)
    _tie_bias(operation, inputs, labels, out)
    axes: Axes = [*value.axes[:batch_axes], *[None] * (len(value.shape) - batch_axes)]
    axes[channel] = out
    return [axes]


def weight_axes(operation: Operation) -> tuple[int, int | None]:
    """Return the axes of output and input channels of a convolution's weight (see ``Operation``)."""
    default = (1, 0) if operation.attributes.get("transposed") else (0, 1)
    found: tuple[int, int | None] = operation.attributes.get("weight_axes", default)
    return found


def _tie_or_pin(operation: Operation, labels: Labels, ids: Ids | None, weight_in: Ids) -> None:
    if ids is None:
        labels.pin(weight_in, operation.key, _FIXED_INPUT)
    else:
        labels.tie(ids, weight_in)


def _grouped(
    operation: Operation, labels: Labels, ids: Ids | None, weight_in: Ids, weight_out: Ids
) -> Ids:
    """Remove whole groups, or the same channels of each group; return the output's labels.

    A plain convolution's weight is [out, in / groups, …], a transposed one's
    [in, out / groups, …]: one of its axes has the channels of all groups, the other those of
    one group, which all share.
    """
    groups = operation.attributes["groups"]
    transposed = bool(operation.attributes.get("transposed"))
    shared, full = (weight_out, weight_in) if transposed else (weight_in, weight_out)
    entering = weight_in if transposed else ids
    if ids is None:
        labels.pin(weight_in, operation.key, _FIXED_INPUT)
        labels.pin(weight_out, operation.key, _FIXED_INPUT)
    elif transposed:
        labels.tie(ids, weight_in)
    per_group = max(len(shared), len(full) // groups)
    options = 1 if len(shared) == 1 and not transposed else 2
    whole_first = groups >= per_group or options == 1
    taken = labels.choose(operation.key, options)
    is_whole = (taken == 0) == whole_first
    out = full if not transposed else labels.fresh(groups * len(shared))
    if is_whole:
        _remove_whole_groups(operation, labels, entering, shared, out)
    else:
        _remove_in_each_group(operation, labels, entering, shared, out)
    labels.note_choice(operation.key, options, out)
    return out


def _remove_whole_groups(
    operation: Operation, labels: Labels, entering: Ids | None, shared: Ids, out: Ids
) -> None:
    groups = operation.attributes["groups"]
    labels.pin(shared, operation.key, "it loses whole groups")
    first = labels.tie_all(out.reshape(groups, -1), 1)
    if entering is not None:
        labels.tie(first, labels.tie_all(entering.reshape(groups, -1), 1))
    labels.whole_groups.add(operation.key)


def _remove_in_each_group(
    operation: Operation, labels: Labels, entering: Ids | None, shared: Ids, out: Ids
) -> None:
    groups = operation.attributes["groups"]
    outs = labels.tie_all(out.reshape(groups, -1), 0)
    ins = labels.tie_all(entering.reshape(groups, -1), 0) if entering is not None else None
    if operation.attributes.get("transposed"):
        labels.tie(outs, shared)
    elif ins is not None:
        labels.tie(ins, shared)


# --- matrices ------------------------------------------------------------------------------------


def _linear(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    """``x W`` or ``x Wᵀ``: the last axis of x meets one axis of the weight."""
    parameter = _matrix(operation)
    data = [port for port in inputs if parameter is not None and port < parameter.port]
    if parameter is None or not data or len(parameter.shape) != 2:
        return None
    value = inputs[data[-1]]
    out_axis = parameter.channel_axis or 0
    weight_in = inputs[parameter.port].axes[1 - out_axis]
    out = inputs[parameter.port].axes[out_axis]
    own_axis = parameter.own_axes()[out_axis]
    if weight_in is None or out is None or own_axis is None:
        return None
    labels.producers.append(Producer(operation.key, parameter.name, own_axis, out))
    _tie_or_pin(operation, labels, value.axes[-1], weight_in)
    for port, other in inputs.items():
        if port not in (data[-1], parameter.port):
            _tie_added(operation, labels, other, out)
    return [[*value.axes[:-1], out]]


def _matrix(operation: Operation) -> Parameter | None:
    """Return the weight, itself or transposed; None when it cannot be shortened."""
    found = [p for p in operation.parameters if len(p.shape) > 1 and p.own_axes()]
    return found[0] if len(found) == 1 and None not in found[0].own_axes() else None


def _tie_added(operation: Operation, labels: Labels, added: Value, out: Ids) -> None:
    if not added.shape or added.shape[-1] != len(out):
        return
    ids = added.axes[-1]
    if ids is None:
        labels.pin(out, operation.key, "it is added to a tensor whose channels stay")
    else:
        labels.tie(out, ids)


def _matmul(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    """``a b``: the last axis of a and the last but one of b are summed over."""
    if len(inputs) != 2 or any(len(value.shape) < 2 for value in inputs.values()):
        return None
    left, right = inputs[0], inputs[1]
    first, second = left.axes[-1], right.axes[-2]
    if first is not None and second is not None:
        labels.tie(first, second)
        for port, axis in ((0, len(left.shape) - 1), (1, len(right.shape) - 2)):
            labels.needs.append(Need(operation.key, port, axis, "zero"))
        if operation.attributes.get("inside") == "scaled_dot_product_attention":
            labels.pin(first, operation.key, "the scale of attention depends on it")
    else:
        for ids in (first, second):
            labels.pin(ids, operation.key, "it is summed with a tensor whose channels stay")
    return [[*_batch_axes(operation, labels, left, right), left.axes[-2], right.axes[-1]]]


def _batch_axes(operation: Operation, labels: Labels, left: Value, right: Value) -> Axes:
    rank = len(operation.attributes["output_shapes"][0])
    axes: Axes = []
    for axis in range(-rank, -2):
        sides = [v for v in (left, right) if len(v.shape) >= -axis and v.shape[axis] > 1]
        labelled = [ids for v in sides if (ids := v.axes[axis]) is not None]
        if len(labelled) == 2:
            labels.tie(labelled[0], labelled[1])
        elif labelled and len(sides) == 2:
            labels.pin(labelled[0], operation.key, "it meets a tensor whose channels stay")
        axes.append(labelled[0] if labelled else None)
    return axes


def _embedding(
    operation: Operation,
    inputs: Inputs,  # noqa: ARG001  # a rule's signature
    labels: Labels,
) -> list[Axes] | None:
    found = [p for p in operation.parameters if p.direct and len(p.shape) == 2]
    if len(found) != 1:
        return None
    rows = labels.of_tensor(found[0].name, 0, found[0].shape[0])
    labels.pin(rows, operation.key, "every row of an embedding can be looked up")
    out = _produce(operation, labels, found[0], 1)
    shape = operation.attributes["output_shapes"][0]
    axes: Axes = [None] * (len(shape) - 1)
    return [[*axes, out]]


WEIGHT_RULES: dict[str, Callable[[Operation, Inputs, Labels], list[Axes] | None]] = {
    **dict.fromkeys(
        ("convolution", "depthwise_convolution", "transposed_convolution"), _convolution
    ),
    "linear": _linear,
    "matmul": _matmul,
    "embedding": _embedding,
    "embedding_bag": _embedding,
}
"""The rule of each kind."""
