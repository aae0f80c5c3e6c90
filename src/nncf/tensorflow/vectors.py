# SPDX-License-Identifier: Apache-2.0
"""The variables of a layer beside its weights: biases, and what normalisation multiplies by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from nncf.tensorflow.op_kinds import Use, is_own_code, keras_class, uses_of, weight_of

_BIASED = frozenset(
    [f"Conv{n}D" for n in (1, 2, 3)]
    + [f"Conv{n}DTranspose" for n in (1, 2, 3)]
    + ["DepthwiseConv1D", "DepthwiseConv2D", "Dense", "EinsumDense"]
)
_ATTRIBUTES = {
    **dict.fromkeys(_BIASED, ("bias",)),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization"), ("gamma", "beta")),
    "BatchNormalization": ("gamma", "beta"),
    "RMSNormalization": ("scale",),
    "PReLU": ("alpha",),
}
_STATISTICS = {"BatchNormalization": ("moving_mean", "moving_variance")}
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def vectors_of(layer: Any) -> Iterator[Use]:
    """Yield the trained variables of a layer of Keras that are no weights."""
    if is_own_code(layer) or not getattr(layer, "built", False):
        return
    if isinstance(layer, _SEPARABLE):
        yield from _present(layer, ("bias",), step=1)
    else:
        yield from _present(layer, _ATTRIBUTES.get(keras_class(layer).__name__, ()))


def statistics_of(layer: Any) -> Iterator[Use]:
    """Yield the variables of a layer of Keras that follow what it sees, one number per channel."""
    if not is_own_code(layer) and getattr(layer, "built", False):
        yield from _present(layer, _STATISTICS.get(keras_class(layer).__name__, ()))


def known_variables(layer: Any) -> set[int]:
    """Return the identities of those variables of a layer that have a Use."""
    uses = (*uses_of(layer), *vectors_of(layer), *statistics_of(layer))
    return {id(weight_of(layer, use.attribute)) for use in uses}


def _present(layer: Any, attributes: tuple[str, ...], step: int = 0) -> Iterator[Use]:
    for attribute in attributes:
        variable = getattr(layer, attribute, None)
        if variable is not None:
            shape = tuple(variable.shape)
            yield Use(step, attribute, shape, max(len(shape) - 1, 0))
