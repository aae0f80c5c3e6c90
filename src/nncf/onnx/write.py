# SPDX-License-Identifier: Apache-2.0
"""From the model that PyTorch's exporter writes to the one that runtimes run fast."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from nncf.errors import ExportError
from nncf.onnx.activations import (
    absorb_channel_scales,
    make_unsigned,
    merge_repeated,
    remove_idle_clips,
    requantize_passing,
)
from nncf.onnx.biases import quantize_biases, separate_biases
from nncf.onnx.graph import Array, Pair, pairs
from nncf.onnx.linear import flatten_linears
from nncf.onnx.weights import (
    fold_batch_norms,
    fold_weight_sources,
    store_weights,
    transpose_weights,
)

# Key in the metadata of a QuantizeLinear: the exported quantizers that it does.
CALLS = "nncf.calls"


@dataclass(frozen=True)
class Probe:
    """Where a quantizer of the exported model can be read in the deployed one.

    ``call`` is the name the exporter gave the quantizer's result, ``label`` says where in the
    model it is, ``tensor`` is the tensor to read. The call's codes are round(tensor / scale + zero): the tensor holds codes, moved up by
    ``-zero``, in the QuantizeLinear form, and values in the FakeQuantize form. With a
    ``threshold`` the codes are 1 where the tensor is above it, else 0.
    """

    call: str
    tensor: str
    zero: Array
    scale: Array
    label: str
    threshold: Array | None = None

    def codes(self, data: Array) -> Array:
        if self.threshold is not None:
            return (data > self.threshold).astype(np.int64)
        return np.rint(data / self.scale + self.zero).astype(np.int64)


def deploy(model: ir.Model, *, for_onnx_runtime: bool = True) -> None:
    """Bring an exported model into its deployed form, in place.

    Afterwards weights are int8, batch norms are part of them, activations are uint8 with
    quantizers on both sides of whatever can run on integers. ``find_probes`` tells where the
    exported quantizers went. ``for_onnx_runtime``: to run on integers it needs biases as int32,
    and quantizers behind operations that only move values; OpenVINO does not, and rounds less and
    has smaller files without.
    """
    common.LiftConstantsToInitializersPass()(model)
    fold_weight_sources(model)
    graph = model.graph
    mark_calls(graph)
    merge_repeated(graph, key=CALLS)
    store_weights(graph)
    clean(model)
    transpose_weights(graph)
    fold_batch_norms(graph)
    make_unsigned(graph)
    remove_idle_clips(graph)
    clean(model)
    absorb_channel_scales(graph)
    flatten_linears(graph)
    clean(model)
    if for_onnx_runtime:
        requantize_passing(graph)
        quantize_biases(graph)
    else:
        separate_biases(graph)
    clean(model)


def mark_calls(graph: ir.Graph) -> None:
    """Note in each quantizer's metadata what ``Probe`` needs, one JSON object a line."""
    for pair in pairs(graph):
        shift = 128 if pair.zero.dtype.kind == "i" else 0
        entry = {"call": pair.result.name, "shift": shift, "label": label_of(pair)}
        pair.quantize.metadata_props[CALLS] = json.dumps(entry)


def label_of(pair: Pair) -> str:
    """Return the path of the module that quantizes, or else the name of its result."""
    return scope_of(pair.dequantize) or str(pair.result.name)


def scope_of(node: ir.Node) -> str:
    """Return the path of the module that a node was exported from, empty for the model itself."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
    path = [str(scope) for scope in ast.literal_eval(scopes)][:-1]
    return path[-1] if path else ""


def find_probes(model: ir.Model) -> tuple[Probe, ...]:
    """Return where the exported quantizers of activations are in a deployed model."""
    found = []
    for node in model.graph:
        for line in node.metadata_props.get(CALLS, "").splitlines():
            entry = json.loads(line)
            probe = Probe(
                entry["call"],
                node.outputs[0].name or "",
                zero=np.array(-entry["shift"]),
                scale=np.array(1),
                label=entry["label"],
            )
            found.append(probe)
    return tuple(found)


def clean(model: ir.Model) -> None:
    """Remove what nothing reads, give every value and node one name of its own."""
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)


def rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the model's inputs and outputs names. Raises ExportError if the counts differ."""
    for kind, values, names in (
        ("inputs", model.graph.inputs, inputs),
        ("outputs", model.graph.outputs, outputs),
    ):
        if len(values) != len(names) or len(set(names)) != len(names):
            raise ExportError(
                f"{len(names)} names were given for {kind}: {list(names)}; the model has "
                f"{len(values)} {kind}. Expected: one name for each, all different."
            )
        taken = set(names)
        for value in graph_values(model.graph):
            if value.name in taken:
                value.name = f"{value.name}.inner"
        for value, name in zip(values, names, strict=True):
            value.name = name


def graph_values(graph: ir.Graph) -> list[ir.Value]:
    found = [*graph.inputs, *graph.initializers.values()]
    return found + [value for node in graph for value in node.outputs]


def split_shared_outputs(model: ir.Model) -> None:
    """Give each output of the model a value of its own (a model may return one tensor twice)."""
    common.OutputFixPass()(model)


def serialized(model: ir.Model) -> bytes:
    """Return the file's bytes, without the traces of source files that the exporter leaves.

    Raises ExportError beyond 2 GB, the limit of one ONNX file.
    """
    common.ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "nncf", None
    try:
        return ir.to_proto(model).SerializeToString()
    except ValueError as error:
        raise ExportError(f"The model does not fit into one ONNX file: {error}") from error


def with_probes(data: bytes, probes: Sequence[Probe]) -> bytes:
    """Return the model with the probed tensors as further outputs of the same names."""
    model = ir.from_proto(parsed(data))
    present = {value.name for value in model.graph.outputs}
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    for name in dict.fromkeys(probe.tensor for probe in probes):
        if name not in present:
            model.graph.outputs.append(by_name[name])
    return ir.to_proto(model).SerializeToString()


def parsed(data: bytes):  # noqa: ANN201  # the type lives in a generated module
    import onnx

    return onnx.ModelProto.FromString(data)
