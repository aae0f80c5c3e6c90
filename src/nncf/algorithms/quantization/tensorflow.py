# SPDX-License-Identifier: Apache-2.0
"""The quantizer as a Keras layer: trainable range in, tensor on the grid out."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nncf.algorithms.quantization.formula import EPSILON
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.tensorflow.compression_layer import CompressionLayer
from nncf.algorithms.tensorflow.native_quantizer import NativeQuantizer
from nncf.compression.layout import Insert
from nncf.errors import ConfigError, DataError, ExportError
from nncf.tensorflow import kernels
from nncf.tensorflow.kernels import Grid

SMALLEST = 1e-12  # no range is made smaller: float32 must be able to divide by its step
NEGLIGIBLE = 2.0**-20  # of the largest channel's range; below, a channel counts as zero


def make_op(insert: Insert, name: str) -> FakeQuantizer:
    """Return the running op of one Insert whose description is a Scheme."""
    assert isinstance(insert.op, Scheme)
    if insert.op.bits == 1:
        raise ConfigError(
            f"{insert.name}: quantizers of one bit are offered for PyTorch models only. Set 2 to 8 "
            "bits for a Keras model."
        )
    return FakeQuantizer(insert.op, insert.shape, name=name)


@keras.saving.register_keras_serializable("nncf")
class FakeQuantizer(CompressionLayer):
    """Rounds a tensor to the grid of a ``Scheme`` while its range is learned.

    ``shape`` is that of the range's parameters: ``(1,)`` per tensor; per channel the rank of
    the tensor, ones but for the channel axis. The variables are ``scale`` and ``signed``, or
    ``input_low`` and ``input_range``; with ``logarithm_scale`` the trained one is the logarithm.
    The formulas are those of ``formula.py``.
    """

    def __init__(
        self, scheme: Scheme | dict[str, Any], shape: tuple[int, ...] = (1,), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.scheme = scheme if isinstance(scheme, Scheme) else Scheme.from_state(scheme)
        self.range_shape = tuple(shape)
        self.initialized = False
        start = "zeros" if self.scheme.logarithm_scale else "ones"
        span = "scale" if self.scheme.mode == "symmetric" else "input_range"
        span = f"logarithm_of_{span}" if self.scheme.logarithm_scale else span
        self.span = self.add_weight(shape=self.range_shape, initializer=start, name=span)
        if self.scheme.mode == "symmetric":
            signed = float(bool(self.scheme.signed))
            self.signed = self.add_weight(
                shape=(), initializer=keras.initializers.Constant(signed), trainable=False,
                name="signed",
            )  # fmt: skip
        else:
            self.input_low = self.add_weight(
                shape=self.range_shape, initializer="zeros", name="input_low"
            )

    # --- what runs in training -------------------------------------------------------------

    def compress(self, x: Any) -> Any:
        """Return x (float32) on the grid."""
        span = tf.convert_to_tensor(self.span)
        low = tf.convert_to_tensor(self.input_low) if self._is_asymmetric else tf.zeros_like(span)
        grid = self._grid(tf.stop_gradient(span), tf.stop_gradient(low))
        if self.scheme.scaled_gradient:
            grid = grid.scaled(self._gradient_factor(x, grid))
        scheme = self.scheme
        if scheme.weight or scheme.half_range or self.range_shape != (1,):
            return kernels.fake_quantize(x, span, low, grid)
        narrow = scheme.narrow_range and not self._is_asymmetric
        return kernels.fake_quantize_activation(x, span, low, grid, (scheme.bits, narrow))

    def _gradient_factor(self, x: Any, grid: Grid) -> Any:
        """Return ``√(q³ / n)``, see ``gradient_factor`` of the quantizer for PyTorch.

        Source: Esser et al. 2020, arXiv:1902.08153, section 2.2.
        """
        count = tf.cast(tf.size(x), tf.float32) / float(np.prod(self.range_shape))
        if not self.scheme.weight and len(x.shape) > 1:
            count /= tf.cast(tf.shape(x)[0], tf.float32)
        highest = grid.highest - (grid.lowest if self._is_asymmetric else 0.0)
        return tf.sqrt(highest**3 / tf.maximum(count, 1.0))

    @property
    def _is_asymmetric(self) -> bool:
        return self.scheme.mode == "asymmetric"

    def _grid(self, span: Any, low: Any) -> Grid:
        if self.scheme.logarithm_scale:
            span = gain = tf.exp(span)
        else:  # of the two derivatives at zero, the one that lets it leave zero
            span, gain = tf.abs(span) + EPSILON, tf.where(span < 0, -1.0, 1.0)
        multiplier = 1.0 if self.scheme.lr_multiplier is None else self.scheme.lr_multiplier
        gain *= multiplier
        if self._is_asymmetric:
            intervals = float(self.scheme.levels(False)[1])
            step, zero, low, high = _tuned(low, span, intervals)
            lows = tf.fill(tf.shape(gain), multiplier)
            gains = (gain / intervals, gain, tf.zeros_like(gain), lows)
            return Grid(step, -zero, intervals - zero, low, high, *gains)
        lowest, highest = self._levels()
        step = span / highest
        # the scale is `highest` steps; the older gradient takes it for the whole range
        steps = highest if self.scheme.scaled_gradient else highest - lowest
        ratio = lowest / highest
        gains = (gain / steps, gain, gain * ratio, tf.zeros_like(gain))
        ends = (tf.fill(tf.shape(span), lowest), tf.fill(tf.shape(span), highest))
        return Grid(step, *ends, step * lowest, span, *gains)

    def _levels(self) -> tuple[Any, Any]:
        positive, both = self.scheme.levels(False), self.scheme.levels(True)
        signed = tf.convert_to_tensor(self.signed) > 0.5
        low = tf.where(signed, float(both[0]), float(positive[0]))
        return low, tf.where(signed, float(both[1]), float(positive[1]))

    # --- the range -------------------------------------------------------------------------

    def set_range(self, minimum: Any, maximum: Any) -> None:
        """Set the range from the least and greatest value seen, of the range's shape.

        Symmetric: ``scale`` is the greater magnitude, and the grid is signed if any value was
        negative, unless the scheme says. Asymmetric: the range, widened to include zero. A
        channel without values other than zero takes the largest channel's range, a tensor
        without them the range 1. Raises ``DataError`` for NaN, infinity and shapes that don't
        fit.
        """
        low, high = self._statistic(minimum, "minimum"), self._statistic(maximum, "maximum")
        if bool((low > high).any()):
            raise DataError(f"{self._title()}: the minimum lies above the maximum")
        if self._is_asymmetric:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            span = high - low
            # rounded up, so that low + span does not fall short of the greatest value
            span = np.where(low + span < high, span * (1 + np.finfo(np.float32).eps), span)
            self.input_low.assign(low)
            self._store(_floored(span))
        else:
            signed = bool((low < 0).any()) if self.scheme.signed is None else self.scheme.signed
            self.signed.assign(float(signed))
            self._store(_floored(np.maximum(np.abs(low), np.abs(high))))
        self.initialized = True

    def _statistic(self, value: Any, name: str) -> Any:
        value = np.asarray(value, np.float32)
        if value.size != 1 and value.size != np.prod(self.range_shape):
            raise DataError(
                f"{self._title()}: {name} has shape {value.shape}, expected {self.range_shape}"
            )
        if not np.isfinite(value).all():
            raise DataError(
                f"{self._title()}: the {name} of the calibration data is NaN or infinite. "
                "Expected finite values. Check the data given to NNCFConfig for initialization "
                "and that the uncompressed model gives finite results on it."
            )
        full = np.broadcast_to(value.reshape(-1), (int(np.prod(self.range_shape)),))
        return full.reshape(self.range_shape)

    def _store(self, span: Any) -> None:
        self.span.assign(np.log(span) if self.scheme.logarithm_scale else span)

    # --- what is deployed ------------------------------------------------------------------

    def grid(self) -> Grid:
        """Return the grid as it is now, as NumPy arrays of the range's shape."""
        low = self.input_low if self._is_asymmetric else tf.zeros_like(self.span)
        found = self._grid(tf.convert_to_tensor(self.span), tf.convert_to_tensor(low))
        return Grid(*(np.broadcast_to(np.asarray(x), self.range_shape) for x in found))

    @property
    def level_range(self) -> tuple[int, int]:
        """The ends of the integer grid."""
        return self.scheme.levels(self.is_signed)

    @property
    def is_signed(self) -> bool:
        """Whether codes may be negative (asymmetric codes never are)."""
        return not self._is_asymmetric and float(self.signed.numpy()) > 0.5

    def native(self) -> NativeQuantizer:
        """Return a layer of TensorFlow's own operations that computes the same bits."""
        scheme, grid = self.scheme, self.grid()
        if scheme.bits > 8:
            raise ExportError(
                f"{self._title()} cannot be deployed: at most 8 bits are. Set fewer bits."
            )
        axis = None if np.prod(self.range_shape) == 1 else int(np.argmax(self.range_shape))
        narrow = scheme.narrow_range and not self._is_asymmetric
        bits, low, high = scheme.bits, grid.low.reshape(-1), grid.high.reshape(-1)
        if scheme.half_range:  # the inner half of the grid of 8 bits: the step is the same
            step = grid.step.reshape(-1)
            lowest = -128.0 if self.is_signed else grid.lowest.reshape(-1)
            low, high = lowest * step, (lowest + 255) * step
        return NativeQuantizer(low.tolist(), high.tolist(), bits, narrow, axis, name=self.name)

    # --- for readers -----------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return what this quantizer is, as JSON-able data (for statistics and reports)."""
        grid = self.grid()
        return {
            "algorithm": self.scheme.algorithm,
            "bits": self.scheme.bits,
            "mode": self.scheme.mode,
            "signed": self.is_signed,
            "per_channel": self.scheme.per_channel,
            "channels": int(np.prod(self.range_shape)),
            "weight": self.scheme.weight,
            "enabled": self.enabled,
            "levels": list(self.level_range),
            "minimum": float(grid.low.min()),
            "maximum": float(grid.high.max()),
        }

    def get_config(self) -> dict[str, Any]:
        own = {"scheme": self.scheme.to_state(), "shape": list(self.range_shape)}
        return {**super().get_config(), **own}

    def _title(self) -> str:
        return f"Quantizer ({self.scheme})"


def _tuned(low: Any, span: Any, intervals: float) -> tuple[Any, Any, Any, Any]:
    """Return step, code of zero, low and high: ``formula.tune_range`` in float32."""
    high = tf.maximum(low + span, 0.0)
    low = tf.minimum(low, 0.0)
    zero = tf.round(-low * (intervals / (high - low)))
    if_high_stays = high / tf.maximum(intervals - zero, 1.0) * tf.cast(zero < intervals, tf.float32)
    if_low_stays = -low / tf.maximum(zero, 1.0) * tf.cast(zero > 0, tf.float32)
    step = tf.maximum(if_high_stays, if_low_stays)
    # the bound that stays is kept to the last bit, so that a value equal to it lies inside
    new_low = tf.where(if_low_stays >= if_high_stays, low, -zero * step)
    new_high = tf.where(if_high_stays >= if_low_stays, high, (intervals - zero) * step)
    return step, zero, new_low, new_high


def _floored(span: Any) -> Any:
    """Replace what is negligible by a range that can be trained (see ``set_range``)."""
    largest = span.max()
    if largest < SMALLEST:
        return np.ones_like(span)
    return np.where(span < largest * NEGLIGIBLE, largest, span)
