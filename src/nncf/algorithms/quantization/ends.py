# SPDX-License-Identifier: Apache-2.0
"""The layers at the two ends of a model: those that read its inputs, those that give its outputs.

They suffer most from few bits: the first sees the data itself through few channels, and what the
last one loses nothing repairs. Published results at 2 to 4 bits keep both at 8 (Esser et al.,
"Learned Step Size Quantization", arXiv:1902.08153; Li et al., "Additive Powers-of-Two
Quantization", arXiv:1909.13144).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nncf.graph.graph import Graph, Operation


def end_layers(graph: Graph) -> frozenset[str]:
    """Return the first and last layers with weights: with none before, or none behind them.

    A layer that shares its weight with one in the middle is none of them. Empty where nothing
    would be left in the middle.
    """
    layers = {operation.key: operation for operation in graph.operations() if operation.weights}
    behind = _reached(layers, lambda key: (edge.target for edge in graph.outputs_of(key)))
    before = _reached(layers, lambda key: (edge.source for edge in graph.inputs_of(key)))
    middle = layers.keys() & behind & before
    inner_weights = {name for key in middle for name in _weights(layers[key])}
    ends = {key for key in layers.keys() - middle if not inner_weights & _weights(layers[key])}
    return frozenset(ends) if middle else frozenset()


def _weights(operation: Operation) -> set[str]:
    return {parameter.name for parameter in operation.weights}


def _reached(starts: Iterable[str], onward: Callable[[str], Iterable[str]]) -> set[str]:
    """Return the operations that one step or more leads to from ``starts``."""
    reached: set[str] = set()
    waiting = [key for start in starts for key in onward(start)]
    while waiting:
        key = waiting.pop()
        if key not in reached:
            reached.add(key)
            waiting.extend(onward(key))
    return reached
