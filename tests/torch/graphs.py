# SPDX-License-Identifier: Apache-2.0
"""Short ways to capture small models and to look at their graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nncf.graph.graph import Graph, Operation
from nncf.torch.capture import Capture, capture


def take(model: nn.Module, *args: Any, **kwargs: Any) -> Capture:
    return capture(model, lambda m: m(*args, **kwargs), inputs=(args, kwargs))


def graph_of(forward: Any, *args: Any) -> Graph:
    """Return the Graph of a function as a model called Net."""

    class Net(nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return forward(*inputs)

    return take(Net(), *(args or (torch.rand(2, 4, 6, 6),))).graph


def names(graph: Graph) -> list[str]:
    return [operation.key.rpartition("/")[2] for operation in graph.operations()]


def sources(graph: Graph, name: str) -> list[str]:
    """Return what feeds the only operation that is called so, by port."""
    (key,) = [op.key for op in graph.operations() if op.key.endswith(name)]
    return [edge.source.rpartition("/")[2] for edge in graph.inputs_of(key)]


def find(graph: Graph, name: str) -> Operation:
    (found,) = [op for op in graph.operations() if op.key.endswith(name)]
    return found
