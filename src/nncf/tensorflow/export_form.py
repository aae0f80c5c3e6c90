# SPDX-License-Identifier: Apache-2.0
"""The form in which converters read a model: weights pass through fake quantization too.

A stripped model has its weights on their grids, but a converter cannot tell which grids those
are. Here each weight runs through TensorFlow's fake quantization, which states it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from nncf.errors import ExportError
from nncf.tensorflow.strip import WeightGrid, strip_with_grids

Quantize = Callable[[WeightGrid, Any], Any]
"""From a grid and a value of the grid's shape to the value behind its fake quantization."""


@dataclass(frozen=True)
class ExportForm:
    """A stripped model, the grids of its weights, the names of its inputs and outputs."""

    model: Any
    grids: tuple[WeightGrid, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: Any) -> ExportForm:
        """Return the export form of a compressed model, which stays as it is."""
        stripped, grids = strip_with_grids(model)
        inputs = _distinct([_word(tensor.name) for tensor in stripped.inputs])
        outputs = _distinct([_word(x._keras_history.operation.name) for x in stripped.outputs])
        while set(inputs) & set(outputs):
            outputs = tuple(f"{name}_output" for name in outputs)
        return cls(stripped, tuple(grids), inputs, outputs)

    def signature(self, batch: int | None) -> tuple[Any, ...]:
        """Return what the inputs are, with a batch of that size."""
        return tuple(
            tf.TensorSpec((batch, *tensor.shape[1:]), tensor.dtype, name=name)
            for tensor, name in zip(self.model.inputs, self.inputs, strict=True)
        )

    @property
    def weights(self) -> tuple[str, ...]:
        """Names for the weights that have grids, all different and not those of an input."""
        names = [_word(grid.variable.path) for grid in self.grids]
        taken = len(self.inputs) + len(self.outputs)
        return _distinct([*self.inputs, *self.outputs, *names])[taken:]

    def function(
        self,
        quantize: Quantize,
        *,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Any:
        """Return a function of the flat inputs that gives the outputs by name, as a dict.

        The variables are constants in it. Further arguments are the values of the weights that
        have grids, in their order; without them these are as the model has them. The model is
        called inside of ``within()``.
        """
        values = [(v, v.numpy()) for v in self.model.variables]

        def forward(*flat: Any) -> Mapping[str, Any]:
            count = len(self.inputs)
            given = tree.pack_sequence_as(self.model._inputs_struct, list(flat[:count]))
            fixed = {id(v): (v, tf.constant(value)) for v, value in values}
            weights = flat[count:] or [fixed[id(grid.variable)][1] for grid in self.grids]
            fixed |= {id(v): (v, x) for v, x in self._values(quantize, weights)}
            with within(), keras.StatelessScope(list(fixed.values())):
                found = tree.flatten(self.model(given, training=False))
            return dict(zip(self.outputs, map(tf.identity, found), strict=True))

        return tf.function(forward, autograph=False)

    def _values(self, quantize: Quantize, weights: Any) -> list[tuple[Any, Any]]:
        found = []
        for grid, value in zip(self.grids, weights, strict=True):
            seen = tf.reshape(value, grid.shape) if _moved(grid) else value
            quantized = quantize(grid, seen)
            found.append((grid.variable, tf.reshape(quantized, value.shape)))
        return found

    def refuse_sparse_inputs(self, what: str) -> None:
        """Raise ExportError for inputs that no file format has."""
        for tensor, name in zip(self.model.inputs, self.inputs, strict=True):
            if getattr(tensor, "sparse", False):
                raise ExportError(
                    f"The input {name} is sparse, and {what} has no such inputs. Expected dense "
                    "inputs; write a SavedModel instead."
                )


def as_trained(grid: WeightGrid, value: Any) -> Any:
    """Return the value behind the fake quantization with the grid that was trained."""
    return grid.quantizer.values(value)


def _moved(grid: WeightGrid) -> bool:
    return tuple(grid.variable.shape) != tuple(grid.shape)


def _word(name: str) -> str:
    """Return a name that TensorFlow takes too: letters, digits and underscores."""
    word = "".join(letter if letter.isalnum() else "_" for letter in name)
    return word if word[:1].isalpha() else f"tensor_{word}"


def _distinct(names: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        number, free = 1, name
        while free in found:
            free, number = f"{name}_{number}", number + 1
        found.append(free)
    return tuple(found)
