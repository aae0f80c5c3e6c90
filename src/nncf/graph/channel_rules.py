# SPDX-License-Identifier: Apache-2.0
"""What each kind of operation does to the labels of channels (see ``channels.py``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nncf.graph.channel_moves import MOVE_RULES
from nncf.graph.channel_weights import WEIGHT_RULES
from nncf.graph.channels import Axes, Ids, Labels, Need, Value, unlabelled
from nncf.graph.graph import Graph, Operation

Inputs = Mapping[int, Value]
Rule = Callable[[Operation, Inputs, Labels], list[Axes]]

_OPAQUE_CALLS = {
    "multi_head_attention_forward": "multi-head attention has one size for input, heads and output",
    "lstm": "a recurrent layer keeps its sizes",
    "gru": "a recurrent layer keeps its sizes",
    "rnn_tanh": "a recurrent layer keeps its sizes",
    "rnn_relu": "a recurrent layer keeps its sizes",
}


def label(graph: Graph, pinned: Mapping[str, str], taken: Mapping[str, int]) -> Labels:
    """Return the labels of a graph (one pass in order of execution)."""
    labels = Labels(dict(taken))
    for operation in graph.operations():
        if operation.kind.name == "output":
            _pin_sources(operation, graph, labels, "they are an output of the model")
            continue
        if operation.unreached is not None and "input_shapes" not in operation.attributes:
            _pin_sources(operation, graph, labels, operation.unreached)
        inputs = labels.inputs(operation, graph)
        first_producer = len(labels.producers)
        outputs = _label_operation(operation, inputs, labels)
        if operation.key in pinned:
            for producer in labels.producers[first_producer:]:
                labels.pin(producer.ids, operation.key, pinned[operation.key])
        for port, axes in enumerate(outputs):
            labels.values[operation.key, port] = axes
            if (operation.key, port) in graph.read_unseen:
                for ids in axes:
                    labels.pin(ids, operation.key, "code reads them that is not captured")
    for tensor, call in graph.fixed.items():
        labels.pin(labels.tensors.get(tensor), call, f"{tensor[0]} is used there with its length")
    return labels


def _pin_sources(operation: Operation, graph: Graph, labels: Labels, reason: str) -> None:
    for edge in graph.inputs_of(operation.key):
        for ids in labels.values.get((edge.source, edge.output_port), []):
            labels.pin(ids, operation.key, reason)


def _label_operation(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes]:
    kind = operation.kind.name
    if kind in ("input", "constant"):
        return []
    inside = operation.attributes.get("inside", "")
    if inside in _OPAQUE_CALLS:
        return _pin_all(operation, inputs, labels, _OPAQUE_CALLS[inside])
    reason = operation.unreached or operation.attributes.get("keeps_channels")
    if reason is not None:
        return _pin_all(operation, inputs, labels, reason)
    rule = FUNCTION_RULES.get(operation.function) or RULES.get(kind)
    outputs = rule(operation, inputs, labels) if rule and inputs else None
    if outputs is None or len(outputs) < len(operation.attributes["output_shapes"]):
        return _pin_all(operation, inputs, labels, f"{operation.function} needs all channels")
    return outputs


def _pin_all(operation: Operation, inputs: Inputs, labels: Labels, reason: str) -> list[Axes]:
    for value in inputs.values():
        labels.pin_value(value, operation.key, reason)
    return unlabelled(operation)


# --- elementwise ---------------------------------------------------------------------------------


def _elementwise(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes]:
    """Tie the operands index by index, aligned from the last axis as broadcasting does."""
    shape = operation.attributes["output_shapes"][0]
    return [[_aligned(operation, inputs, labels, axis) for axis in range(-len(shape), 0)]]


def _aligned(operation: Operation, inputs: Inputs, labels: Labels, axis: int) -> Ids | None:
    present = [value for value in inputs.values() if len(value.shape) >= -axis]
    long = [value for value in present if value.shape[axis] > 1]
    labelled = [ids for value in long if (ids := value.axes[axis]) is not None]
    if not labelled:
        short = (value.axes[axis] for value in present if value.axes[axis] is not None)
        return None if long else next(short, None)
    for other in labelled[1:]:
        labels.tie(labelled[0], other)
    if len(labelled) < len(long):
        labels.pin(labelled[0], operation.key, "it meets a tensor whose channels stay")
    return next((ids for ids in labelled if not labels.is_closed(ids)), labelled[0])


def _with_parameters_on_channels(
    operation: Operation, inputs: Inputs, labels: Labels
) -> list[Axes]:
    """Tie what has one number per channel (batch norm, PReLU) with the input's axis of channels."""
    value = inputs[0]
    if any(port and len(other.shape) > 1 for port, other in inputs.items()):
        return _elementwise(operation, inputs, labels)  # one number per position, as Keras' PReLU
    axis = operation.attributes.get("input_channel_axis", 1 if len(value.shape) > 1 else 0)
    _tie_vectors(operation, inputs, labels, value.axes[axis], value.shape[axis])
    return [list(value.axes)]


def _tie_vectors(
    operation: Operation, inputs: Inputs, labels: Labels, ids: Ids | None, length: int
) -> None:
    for port, value in inputs.items():
        if port == 0 or value.shape != (length,) or length == 1:
            continue
        own = value.axes[0]
        if not value.open or own is None:
            labels.pin(ids, operation.key, "it meets a tensor whose channels stay")
        elif ids is None:
            labels.pin(own, operation.key, "its input keeps its channels")
        else:
            labels.tie(ids, own)


def _glu(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    """Halve an axis: the first half is multiplied with the second, which loses the same channels."""
    value, shape = inputs[0], operation.attributes["output_shapes"][0]
    axes: Axes = list(value.axes)
    halved = [axis for axis, length in enumerate(shape) if value.shape[axis] == 2 * length]
    if len(halved) != 1:
        return None
    ids = axes[halved[0]]
    if ids is not None:
        axes[halved[0]] = labels.tie_all(ids.reshape(2, -1), 0)
    return [axes]


# --- normalisation over channels -----------------------------------------------------------------


def _layer_norm(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    value = inputs[0]
    if tuple(operation.attributes.get("axes", (len(value.shape) - 1,))) != (len(value.shape) - 1,):
        return None
    normalized = [n for n in operation.attributes.get("numbers", ()) if n.meaning == "input_length"]
    if len(normalized) > 1:
        for number in normalized:
            labels.pin(value.axes[number.axis], operation.key, "it normalises over several axes")
    last = value.axes[-1]
    _tie_vectors(operation, inputs, labels, last, value.shape[-1])
    if last is not None:
        kind = "mean_square" if operation.kind.name == "rms_norm" else "statistics"
        labels.needs.append(Need(operation.key, 0, len(value.shape) - 1, kind))
    return [list(value.axes)]


def _group_norm(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes]:
    """Remove whole groups: the statistics of the others do not change."""
    value = inputs[0]
    channel = operation.attributes.get("input_channel_axis", 1)
    ids = value.axes[channel]
    _tie_vectors(operation, inputs, labels, ids, value.shape[channel])
    groups = next(
        (n.value for n in operation.attributes.get("numbers", ()) if n.meaning == "groups"), 1
    )
    if ids is not None:
        labels.tie_all(ids.reshape(groups, -1), 1)
        if groups == 1:
            labels.pin(ids, operation.key, "it normalises over all channels")
    return [list(value.axes)]


# --- reductions ----------------------------------------------------------------------------------


def _reduce(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    """Sums and norms see zeros for removed channels, means and maxima the mean of the others."""
    if len(inputs) > 1:
        return _elementwise(operation, inputs, labels)
    value, reduced = inputs[0], operation.attributes["axes"]
    for axis in reduced:
        if value.axes[axis] is None:
            continue
        if operation.kind.name in ("sum", "norm", "l2_norm"):
            labels.needs.append(Need(operation.key, 0, axis, "zero"))
        elif operation.kind.name in ("mean", "reduce_max") and _returns_values(operation):
            labels.needs.append(Need(operation.key, 0, axis, "mean"))
        else:
            labels.pin(value.axes[axis], operation.key, f"{operation.function} is over channels")
    if operation.kind.name == "l2_norm":
        return [list(value.axes)]
    outputs: list[Axes] = []
    for shape in operation.attributes["output_shapes"]:
        kept = [ids for axis, ids in enumerate(value.axes) if axis not in reduced]
        same = [None if axis in reduced else ids for axis, ids in enumerate(value.axes)]
        outputs.append(same if len(shape) == len(value.shape) else kept)
    return outputs


def _returns_values(operation: Operation) -> bool:
    """Tell whether a call returns values alone; indices of channels would be others."""
    return len(operation.attributes["output_shapes"]) == 1 and "arg" not in operation.function


def _along_axes(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes]:
    value = inputs[0]
    for axis in operation.attributes["axes"]:
        labels.pin(value.axes[axis], operation.key, f"{operation.function} is over channels")
    return [list(value.axes)]


def _over_space(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes]:
    """Pooling and resizing: the trailing axes change, those before them pass."""
    value = inputs[0]
    if "input_channel_axis" in operation.attributes:
        return _over_all_but_channels(operation, value, labels)
    outputs: list[Axes] = []
    for shape in operation.attributes["output_shapes"]:
        axes: Axes = []
        for axis, ids in enumerate(value.axes[: len(shape)]):
            is_space = axis >= 2 or shape[axis] != value.shape[axis]
            if is_space:
                labels.pin(ids, operation.key, f"{operation.function} runs along it")
            axes.append(None if is_space else ids)
        outputs.append(axes)
    return outputs


def _over_all_but_channels(operation: Operation, value: Value, labels: Labels) -> list[Axes]:
    channel = operation.attributes["input_channel_axis"]
    for axis, ids in enumerate(value.axes):
        if axis not in (0, channel):
            labels.pin(ids, operation.key, f"{operation.function} runs along it")
    axes: Axes = [None] * len(operation.attributes["output_shapes"][0])
    axes[0], axes[operation.attributes["channel_axis"]] = value.axes[0], value.axes[channel]
    return [axes]


# --- what picks by index -------------------------------------------------------------------------


def _gather(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    return _elementwise(operation, inputs, labels) if operation.function == "where" else None


def _scatter(operation: Operation, inputs: Inputs, labels: Labels) -> list[Axes] | None:
    if operation.function in ("masked_fill", "masked_fill_"):
        return _elementwise(operation, inputs, labels)
    return None


_ELEMENTWISE = (
    "add subtract multiply divide maximum minimum power floor_mod compare logical dropout relu "
    "relu6 hardtanh elu leaky_relu sigmoid gelu silu mish hardsigmoid hardswish tanh softplus exp "
    "log sqrt erf round negate absolute trigonometric"
)

RULES: dict[str, Callable[[Operation, Inputs, Labels], list[Axes] | None]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), _with_parameters_on_channels),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("mean", "sum", "reduce_max", "norm", "variance", "l2_norm"), _reduce),
    **dict.fromkeys(("softmax", "log_softmax", "roll"), _along_axes),
    **dict.fromkeys(("average_pool", "max_pool", "interpolate"), _over_space),
    **MOVE_RULES,
    "gather": _gather,
    "scatter": _scatter,
    **WEIGHT_RULES,
}
"""The rule of each kind; a kind without one needs all channels, as does a rule that returns None."""

FUNCTION_RULES: dict[str, Callable[[Operation, Inputs, Labels], list[Axes] | None]] = {"glu": _glu}
"""The rules of functions that are no kind of their own."""
