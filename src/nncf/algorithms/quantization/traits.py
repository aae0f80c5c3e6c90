# SPDX-License-Identifier: Apache-2.0
"""How each operation behaves towards quantizers.

``quantizes``  its inputs are to be quantized, so that it can run on integers;
``passes``     it moves values without changing them, a quantizer may move past it;
``opaque``     it needs floating point: no quantizer at its inputs for its own sake.

A hardware description decides where it names the operation; the tables here decide otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncf.algorithms.quantization.hardware import Hardware, Schemes
from nncf.graph.graph import Edge, Operation
from nncf.graph.kinds import WEIGHTED

Behaviour = Literal["quantizes", "passes", "opaque"]

PASSING = frozenset(
    ["dropout", "pad", "reduce_max", "transpose", "gather", "scatter", "reshape", "squeeze"]
    + ["unsqueeze", "split", "expand", "max_pool", "max_unpool", "repeat", "identity", "slice"]
    + ["roll", "pixel_shuffle", "channel_shuffle", "concat"]
)
QUANTIZED = frozenset(
    ["convolution", "depthwise_convolution", "transposed_convolution", "deformable_convolution"]
    + ["linear", "matmul", "attention", "lstm", "gru", "add", "multiply", "divide", "mean"]
    + ["average_pool", "batch_norm", "layer_norm", "hardtanh", "hardswish", "hardsigmoid", "tanh"]
    + ["elu", "prelu", "leaky_relu", "gelu", "erf", "round"]
)
"""What is quantized where no hardware description says otherwise."""

EMBEDDINGS = frozenset(["embedding", "embedding_bag"])
MULTIPLIES = (WEIGHTED - EMBEDDINGS) | {"matmul", "lstm", "gru"}
"""Kinds whose weights enter multiply-accumulate instructions."""

# Kinds that keep axis 1 as it is: ranges per channel stay valid when a quantizer moves past.
_KEEPS_CHANNELS = frozenset(["dropout", "pad", "max_pool", "max_unpool", "identity"])

_TWO_OPERANDS = MULTIPLIES - {"lstm", "gru"} | frozenset(
    ["add", "subtract", "multiply", "maximum", "minimum", "compare", "logical"]
)
"""Kinds whose second operand is quantized too. Not divisors: a small one would become zero."""
_ADDS_FIRST_ARGUMENT = frozenset(["addmm", "baddbmm"])


@dataclass(frozen=True)
class Trait:
    """The behaviour of an operation; the schemes are None where the device states nothing."""

    behaviour: Behaviour
    activations: Schemes | None = None
    weights: Schemes | None = None
    unified: bool = False


def trait_of(operation: Operation, hardware: Hardware) -> Trait:
    """Return how the operation behaves towards quantizers on that device."""
    kind = operation.kind.name
    entry = hardware.find(operation)
    if entry is None:
        # A name that the device leaves out means that it computes the operation in float.
        unlisted = hardware.entries is not None and bool(operation.kind.hardware)
        return Trait(_default(kind, quantizable=not unlisted))
    if entry.passes(operation.attributes):
        return Trait("passes")
    if entry.activations is None:
        behaviour = _default(kind, quantizable=entry.weights is None)
        return Trait(behaviour, None, entry.weights, entry.unified)
    return Trait("quantizes", entry.activations, entry.weights, entry.unified)


def _default(kind: str, *, quantizable: bool) -> Behaviour:
    if kind in PASSING:
        return "passes"
    return "quantizes" if quantizable and kind in QUANTIZED else "opaque"


def quantized_ports(operation: Operation) -> frozenset[int]:
    """Return the input ports that hold operands, without weights, biases and masks."""
    kind = operation.kind.name
    if operation.function in _ADDS_FIRST_ARGUMENT:
        ports = {1, 2}
    elif kind == "attention":
        ports = {0, 1, 2}
    else:
        ports = {0, 1} if kind in _TWO_OPERANDS else {0}
    return frozenset(ports - {parameter.port for parameter in operation.parameters})


def keeps_channels(operation: Operation) -> bool:
    """Tell whether ranges per channel stay valid when a quantizer moves past the operation."""
    return operation.kind.name in _KEEPS_CHANNELS


def is_scalar(edge: Edge) -> bool:
    """Tell whether the tensor has no axes: a factor or an offset, not an activation."""
    return edge.shape == ()
