# SPDX-License-Identifier: Apache-2.0
"""Tensors of two values: bits for weights, and what OpenVINO turns into binary convolutions.

A binarized activation is exported as ``Where(Greater(x, threshold), high, low)``, here a *switch*.
A binarized weight has the values ±magnitude in each output channel, also after a batch norm has
been folded into it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nncf.onnx.graph import Array, array, attribute, nodes, producer, store
from nncf.onnx.write import Probe, scope_of

SWITCH = "nncf.switch"
"""Key in the metadata of the node that does the work of a switch: its call, as JSON."""

DOMAIN = "org.openvinotoolkit"

_OVERHEAD = 1000  # bytes that the nodes which unpack bits take in the file
_CHANNELS_IN_A_STEP = 8  # of OpenVINO's binary convolution, which errs for other numbers


# --- switches ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Switch:
    """``high`` where ``source`` is above ``threshold``, else ``low``; ``node`` gives the result."""

    node: ir.Node
    source: ir.Value
    threshold: Array
    high: Array
    low: Array


def switches(graph: ir.Graph) -> list[Switch]:
    """Return the marked switches of a graph in order, in whichever form they are."""
    found = []
    for node in graph:
        if SWITCH in node.metadata_props:
            switch = _as_two_level(node) if node.op_type == "FakeQuantize" else _as_switch(node)
            if switch is not None:
                found.append(switch)
    return found


def mark_switches(graph: ir.Graph) -> None:
    """Note in the metadata of each exported switch which call of which module it is.

    Calls are ``<path of the module>#<number>``.
    """
    counts: Counter[str] = Counter()
    for node in nodes(graph, "Where"):
        path = scope_of(node)
        if ".ops." not in path or _as_switch(node) is None:
            continue
        node.metadata_props[SWITCH] = json.dumps({"call": f"{path}#{counts[path]}", "label": path})
        counts[path] += 1


def switch_probes(graph: ir.Graph) -> tuple[Probe, ...]:
    """Return where to read what the switches decide on; not those at inputs of the model.

    The tensor to read is the one before the switch: OpenVINO takes a switch into the convolution
    behind it, and computes something else when its result is asked for.
    """
    probes = []
    for switch in switches(graph):
        if switch.source.producer() is None:
            continue
        noted = json.loads(switch.node.metadata_props[SWITCH])
        probes.append(
            Probe(
                noted["call"],
                switch.source.name or "",
                zero=np.array(0),
                scale=switch.high,
                label=noted["label"],
                threshold=switch.threshold,
            )
        )
    return tuple(probes)


def _as_switch(node: ir.Node) -> Switch | None:
    greater = producer(node.inputs[0], "Greater")
    if greater is None or greater.inputs[0] is None:
        return None
    threshold, high, low = (array(v) for v in (greater.inputs[1], *node.inputs[1:3]))
    if threshold is None or high is None or low is None:
        return None
    return Switch(node, greater.inputs[0], threshold, high, low)


def _as_two_level(node: ir.Node) -> Switch | None:
    source, threshold, _, low, high = node.inputs
    ends = [array(value) for value in (threshold, high, low)]
    if source is None or any(end is None for end in ends):
        return None
    return Switch(node, source, *ends)  # type: ignore[arg-type]  # just looked at


# --- weights -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Signs:
    """A weight as signs (bool) and the magnitude of each output channel, ones in other axes."""

    positive: Array
    magnitude: Array


def signs_of(weight: Array | None) -> Signs | None:
    """Return the signs of a weight whose channels have two values ±m, None for any other."""
    if weight is None or weight.dtype != np.float32 or weight.ndim < 2 or not weight.size:
        return None
    magnitude = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    if not np.isfinite(magnitude).all() or not (np.abs(weight) == magnitude).all():
        return None
    return Signs(~np.signbit(weight), magnitude)


def store_signs(model: ir.Model) -> None:
    """Store the weights of convolutions that have two values as a bit for each element.

    The nodes that make them floats again see nothing but stored tensors, so runtimes compute them
    once, when they load the file.
    """
    graph = model.graph
    places: ir.Value | None = None
    done: set[ir.Value] = set()
    for layer in nodes(graph, "Conv"):
        value = layer.inputs[1]
        signs = signs_of(array(value))
        if value is None or signs is None or value in done:
            continue
        if signs.positive.size * 4 < signs.positive.size / 8 + signs.magnitude.nbytes + _OVERHEAD:
            continue
        if places is None:
            places = store(graph, "bit.places", 1 << np.arange(8, dtype=np.uint8))
        done.add(value)
        value.replace_all_uses_with(_unpacked(graph, value.name or "weight", signs, places))


def _unpacked(graph: ir.Graph, name: str, signs: Signs, places: ir.Value) -> ir.Value:
    """Insert the nodes that turn bits into ±magnitude at the start; return their result."""
    size, shape = signs.positive.size, signs.positive.shape
    bits = np.packbits(signs.positive.reshape(-1), bitorder="little").reshape(-1, 1)
    stored = store(graph, f"{name}.bits", bits)
    chosen = ir.node("BitwiseAnd", [stored, places])
    found = [chosen, ir.node("Cast", chosen.outputs, {"to": ir.DataType.BOOL})]
    if size % 8:
        numbers = [store(graph, f"{name}.{k}", np.array([v])) for k, v in
                   (("all", -1), ("start", 0), ("end", size))]  # fmt: skip
        flat = ir.node("Reshape", [found[-1].outputs[0], numbers[0]])
        found += [flat, ir.node("Slice", [flat.outputs[0], *numbers[1:]])]
    whole = store(graph, f"{name}.shape", np.array(shape))
    found.append(ir.node("Reshape", [found[-1].outputs[0], whole]))
    high = store(graph, f"{name}.magnitude", signs.magnitude)
    low = store(graph, f"{name}.opposite", -signs.magnitude)
    result = ir.node("Where", [found[-1].outputs[0], high, low])
    found.append(result)
    for position, node in enumerate(found):
        node.outputs[0].name = f"{name}.step{position}"
    result.outputs[0].name, result.outputs[0].shape = f"{name}.signed", ir.Shape(shape)
    result.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    first = next(iter(graph))
    graph.insert_before(first, found)
    return result.outputs[0]


# --- OpenVINO ------------------------------------------------------------------------------


def use_binary_convolutions(model: ir.Model) -> None:
    """Write switches and weights of binary convolutions as FakeQuantize with two levels.

    OpenVINO turns a convolution between two of these into one on bits, where it computes the right
    thing: over two axes, without groups and for a multiple of 8 input channels. Elsewhere, and
    where such a node has a second reader, it computes something else; equal nodes it makes one. So
    of the convolutions that read one decision the largest gets two nodes of its own, and
    everything else stays as it is.
    """
    graph = model.graph
    found = {switch.node.outputs[0]: switch for switch in switches(graph)}
    largest: dict[tuple[ir.Value, bytes, bytes], tuple[ir.Node, Signs]] = {}
    for layer in nodes(graph, "Conv"):
        result, signs = layer.inputs[0], signs_of(array(layer.inputs[1]))
        if result is None or result not in found or signs is None:
            continue
        switch = found[result]
        decision = switch.source, switch.threshold.tobytes(), switch.high.tobytes()
        other = largest.get(decision)
        is_larger = other is None or signs.positive.size > other[1].positive.size
        if is_larger and _is_binary(layer, switch, signs):
            largest[decision] = layer, signs
    for layer, signs in largest.values():
        result, weight = layer.inputs[:2]
        assert result is not None  # it is one of those found
        name = (weight.name if weight is not None else None) or "weight"
        layer.replace_input_with(0, _two_level_switch(graph, found[result]))
        layer.replace_input_with(1, _two_level_weight(graph, name, signs))
    if largest:
        graph.opset_imports[DOMAIN] = 1


def _is_binary(layer: ir.Node, switch: Switch, signs: Signs) -> bool:
    return (
        signs.positive.ndim == 4
        and attribute(layer, "group", 1) == 1
        and signs.positive.shape[1] % _CHANNELS_IN_A_STEP == 0
        and bool((signs.magnitude > 0).all())
        and switch.high.dtype == np.float32
        and float(switch.low) == 0.0
    )


def _two_level_switch(graph: ir.Graph, switch: Switch) -> ir.Value:
    name = switch.node.outputs[0].name or "switch"
    threshold = store(graph, f"{name}.threshold", switch.threshold.reshape(1, -1, 1, 1))
    ends = [
        store(graph, f"{name}.{end}", data.reshape(1, 1, 1, 1))  # scalars crash OpenVINO 2026.4
        for end, data in (("low", switch.low), ("high", switch.high))
    ]
    node = _two_level(switch.source, threshold, ends[0], ends[1])
    node.metadata_props[SWITCH] = switch.node.metadata_props.pop(SWITCH)
    node.outputs[0].name = f"{name}.two_level"
    graph.insert_before(switch.node, node)
    return node.outputs[0]


def _two_level_weight(graph: ir.Graph, name: str, signs: Signs) -> ir.Value:
    codes = np.where(signs.positive, 1, -1).astype(np.int8)
    stored = store(graph, f"{name}.signs", codes)
    floats = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
    floats.outputs[0].name = f"{name}.float"
    zero = store(graph, f"{name}.zero", np.zeros((1, 1, 1, 1), np.float32))
    low = store(graph, f"{name}.low", -signs.magnitude)
    high = store(graph, f"{name}.high", signs.magnitude)
    node = _two_level(floats.outputs[0], zero, low, high)
    node.outputs[0].name = f"{name}.two_level"
    graph.insert_before(next(iter(graph)), [floats, node])
    return node.outputs[0]


def _two_level(source: ir.Value, threshold: ir.Value, low: ir.Value, high: ir.Value) -> ir.Node:
    return ir.node(
        "FakeQuantize", [source, threshold, threshold, low, high], {"levels": 2}, domain=DOMAIN
    )
