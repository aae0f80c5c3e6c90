# SPDX-License-Identifier: Apache-2.0
"""Counting products: how often the weights of a model are multiplied for one sample.

Counted are convolutions and linear layers; what other operations do is small beside it.
"""

from __future__ import annotations

import math

from nncf.graph.graph import Graph, Operation

COUNTED = frozenset(["convolution", "depthwise_convolution", "transposed_convolution", "linear"])
"""Kinds whose products are counted."""


def counted_operations(graph: Graph) -> list[Operation]:
    """Return the operations whose products are counted, in order of execution."""
    return [
        operation
        for operation in graph.operations(*COUNTED)
        if operation.parameters and operation.attributes.get("output_shapes")
    ]


def multiply_accumulates(graph: Graph) -> dict[str, float]:
    """Return the number of multiply-accumulates (MACs) for one sample, by operation."""
    samples = samples_in(graph)
    return {
        operation.key: positions(operation) / samples * math.prod(operation.parameters[0].shape)
        for operation in counted_operations(graph)
    }


def positions(operation: Operation) -> float:
    """Return how often the whole weight is applied: at every output position of all samples.

    0 for embeddings, which only look it up; 1 for a weight of an operation that is none of these.
    """
    shape = operation.attributes["output_shapes"][0]
    if operation.kind.name in ("linear", "matmul"):
        return float(math.prod(shape[:-1]))
    if operation.kind.name in ("lstm", "gru"):
        return float(math.prod(operation.attributes["input_shapes"][0][:-1]))
    if "kernel_size" not in operation.attributes:
        return float(operation.kind.name not in ("embedding", "embedding_bag"))
    rank = len(operation.attributes["kernel_size"])
    if operation.kind.name == "transposed_convolution":
        shape = operation.attributes["input_shapes"][0]
    channel = operation.attributes.get("channel_axis", len(shape) - rank - 1)
    return float(math.prod((*shape[:channel], *shape[channel + 1 :])))


def samples_in(graph: Graph) -> int:
    """Return how many samples the graph was captured with: the first axis of the first input."""
    for operation in graph.operations("input"):
        for edge in graph.outputs_of(operation.key):
            return edge.shape[0] if edge.shape else 1
    return 1
