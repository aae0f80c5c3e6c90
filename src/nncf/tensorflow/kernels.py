# SPDX-License-Identifier: Apache-2.0
"""Fake quantization of tensors with TensorFlow's operations, and its gradient.

Activations with one range go through ``tf.quantization.fake_quant_with_min_max_vars``: one pass
forward, one backward, and the same operation stands in the deployed model. All else, such as
weights with a range per channel, is computed by plain operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class Grid(NamedTuple):
    """A quantizer's grid as float32 tensors of one shape, and how its parameters learn.

    Codes ``lowest…highest``, counted from that of zero, stand for ``code · step``; ``low`` and
    ``high`` are the ends. ``error_gain`` is the derivative by the span of one step of rounding
    error, ``above_gain`` and ``below_gain`` those of a value cut off, ``low_gain`` that of the
    lower end by a value cut off anywhere (zero where the lower end is not learned).
    """

    step: Any
    lowest: Any
    highest: Any
    low: Any
    high: Any
    error_gain: Any
    above_gain: Any
    below_gain: Any
    low_gain: Any

    def scaled(self, factor: Any) -> Grid:
        """Return the grid with all gradients of the parameters multiplied."""
        gains = (self.error_gain, self.above_gain, self.below_gain, self.low_gain)
        return Grid(*self[:5], *(gain * factor for gain in gains))


def rounded(x: Any, grid: Grid) -> Any:
    """Return x on the grid, by plain operations; ties go to the even code."""
    codes = tf.clip_by_value(tf.round(x / grid.step), grid.lowest, grid.highest)
    return codes * grid.step


def fake_quantize(x: Any, span: Any, low: Any, grid: Grid) -> Any:
    """Return x on the grid; gradients flow to x, ``span`` and ``low``.

    ``span`` and ``low`` are the learned parameters, of the shape of the grid's members, which
    broadcasts against x. The derivatives are those of
    ``nncf.algorithms.quantization.formula.gradients``.
    """

    @tf.custom_gradient
    def quantized(x: Any, span: Any, _low: Any) -> Any:
        y = rounded(x, grid)

        def gradient(upstream: Any) -> Any:
            above, below = x > grid.high, x < grid.low
            outside = tf.logical_or(above, below)
            passed = tf.where(outside, tf.zeros_like(upstream), upstream)
            cut = upstream - passed
            over = tf.where(above, upstream, tf.zeros_like(upstream))
            error = _summed(passed * (y - x), span.shape) / grid.step
            by_above = _summed(over, span.shape)
            by_below = _summed(cut - over, span.shape)
            return passed, *_learned(grid, error, by_above, by_below)

        return y, gradient

    return quantized(x, span, low)


def fake_quantize_activation(x: Any, span: Any, low: Any, grid: Grid, how: tuple[int, bool]) -> Any:
    """Return ``fake_quantize`` for one range per tensor, of shape (1,), by the fused operation.

    ``how`` is the number of bits and whether the grid is narrow. Ties go up.
    """
    bits, narrow = how
    lower, upper = tf.reshape(grid.low, ()), tf.reshape(grid.high, ())

    @tf.custom_gradient
    def quantized(x: Any, _span: Any, _low: Any) -> Any:
        y = tf.quantization.fake_quant_with_min_max_vars(x, lower, upper, bits, narrow)

        def gradient(upstream: Any) -> Any:
            passed, by_below, by_above = tf.quantization.fake_quant_with_min_max_vars_gradient(
                upstream, x, lower, upper, bits, narrow
            )
            error = tf.reshape(tf.reduce_sum(passed * (y - x)), (1,)) / grid.step
            sums = (tf.reshape(by_above, (1,)), tf.reshape(by_below, (1,)))
            return passed, *_learned(grid, error, *sums)

        return y, gradient

    return quantized(x, span, low)


def _learned(grid: Grid, error: Any, by_above: Any, by_below: Any) -> tuple[Any, Any]:
    """Return the gradients of span and low from the sums of rounding errors and of cut values."""
    span = error * grid.error_gain + by_above * grid.above_gain + by_below * grid.below_gain
    return span, (by_above + by_below) * grid.low_gain


def _summed(values: Any, shape: Any) -> Any:
    """Return the sum over all axes in which ``shape`` has length one."""
    shape = tuple(shape)
    if len(shape) != len(values.shape):
        return tf.reshape(tf.reduce_sum(values), shape)
    axes = [axis for axis, length in enumerate(shape) if length == 1]
    return tf.reduce_sum(values, axes, keepdims=True)


def is_finite(values: Any) -> bool:
    """Tell whether all values are finite numbers."""
    return bool(tf.reduce_all(tf.math.is_finite(values)))
