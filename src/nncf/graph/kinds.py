# SPDX-License-Identifier: Apache-2.0
"""What operations are, independent of the framework that runs them.

A backend maps each of its functions to one Kind (``torch/op_kinds.py``). Algorithms decide by
kind, never by function name. ``hardware`` holds the names under which hardware descriptions
(``algorithms/quantization/hardware/*.json``) speak of the kind.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A class of operations that all algorithms treat alike."""

    name: str
    hardware: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


_TABLE: dict[str, tuple[str, ...]] = {
    # multiply-accumulate, the operations that quantization is for
    "convolution": ("Convolution",),
    "depthwise_convolution": ("DepthWiseConvolution",),
    "transposed_convolution": ("ConvolutionBackpropData",),
    "deformable_convolution": ("Convolution",),
    "linear": ("MatMul",),
    "matmul": ("MatMul",),
    "attention": ("MatMul",),  # fused scaled dot product attention
    "embedding": ("Embedding",),
    "embedding_bag": ("EmbeddingBag",),
    "lstm": ("LSTMSequence",),
    "gru": ("GRUSequence",),
    "rnn": (),
    # normalisation
    "batch_norm": (),
    "layer_norm": ("MVN",),
    "group_norm": ("MVN",),
    "instance_norm": ("MVN",),
    "rms_norm": (),
    "l2_norm": ("NormalizeL2", "ReduceL2"),
    # elementwise arithmetic
    "add": ("Add",),
    "subtract": ("Subtract",),
    "multiply": ("Multiply",),
    "divide": ("Divide",),
    "maximum": ("Maximum",),
    "minimum": ("Minimum",),
    "power": ("Power",),
    "floor_mod": ("FloorMod",),
    "compare": ("Less", "LessEqual", "Greater", "GreaterEqual", "Equal", "NotEqual"),
    "logical": ("LogicalAnd", "LogicalOr", "LogicalXor", "LogicalNot"),
    # reductions and pooling
    "mean": ("ReduceMean",),
    "sum": ("ReduceSum",),
    "reduce_max": ("ReduceMax",),
    "average_pool": ("AvgPool",),
    "max_pool": ("MaxPool",),
    "max_unpool": (),
    # moving data about without changing values
    "concat": ("Concat",),
    "split": ("Split", "VariadicSplit"),
    "reshape": ("Reshape", "Flatten"),
    "squeeze": ("Squeeze",),
    "unsqueeze": ("Unsqueeze",),
    "transpose": ("Transpose",),
    "expand": ("Broadcast",),
    "repeat": ("Tile",),
    "pad": ("Pad",),
    "slice": ("StridedSlice", "Crop"),
    "gather": (),
    "scatter": (),
    "roll": (),
    "interpolate": ("Interpolate",),
    "pixel_shuffle": ("DepthToSpace",),
    "channel_shuffle": ("ShuffleChannels",),
    "dropout": (),
    "identity": (),
    # activation functions
    "relu": (),
    "relu6": (),
    "hardtanh": (),
    "elu": (),
    "prelu": (),
    "leaky_relu": (),
    "sigmoid": (),
    "gelu": ("Gelu",),
    "silu": (),
    "mish": (),
    "hardsigmoid": (),
    "hardswish": (),
    "tanh": (),
    "softplus": (),
    "softmax": (),
    "log_softmax": (),
    "exp": (),
    "log": (),
    "sqrt": ("Power",),
    "erf": (),
    "round": (),
    "negate": (),
    "absolute": (),
    "trigonometric": (),
    # reductions, orders and transforms that stay in floating point
    "norm": (),
    "variance": (),
    "sort": (),
    "cumulative": (),
    "fourier": (),
    # ends of the graph, and what we know nothing about
    "input": (),
    "output": (),
    "constant": (),
    "unknown": (),
}

KINDS: dict[str, Kind] = {name: Kind(name, hardware) for name, hardware in _TABLE.items()}
"""Every kind by name."""

WEIGHTED = frozenset(
    ["convolution", "depthwise_convolution", "transposed_convolution", "deformable_convolution"]
    + ["linear", "embedding", "embedding_bag"]
)
"""Names of the kinds whose second operand is a trained weight."""
