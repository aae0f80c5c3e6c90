# SPDX-License-Identifier: Apache-2.0
"""The quantizer as a PyTorch module: trainable range in, tensor on the grid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nncf.algorithms.quantization.formula import EPSILON
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.torch.native_quantizer import NativeQuantizer
from nncf.algorithms.torch.signs import sign_times_scale
from nncf.compression.layout import Insert
from nncf.errors import DataError, ExportError
from nncf.torch import kernels
from nncf.torch.kernels import ABOVE_GAIN, ERROR_GAIN, HIGH, HIGHEST, LOW, LOWEST, STEP

SMALLEST = 1e-12  # no range is made smaller: float32 must be able to divide by its step
NEGLIGIBLE = 2.0**-20  # of the largest channel's range; below, a channel counts as zero


def make_op(insert: Insert) -> FakeQuantizer:
    """Return the running op of one Insert whose description is a Scheme."""
    assert isinstance(insert.op, Scheme)
    return FakeQuantizer(insert.op, insert.shape)


class FakeQuantizer(nn.Module):
    """Rounds a tensor to the grid of a ``Scheme`` while its range is learned.

    ``shape`` is that of the range's parameters: ``(1,)`` per tensor; per channel the rank of
    the tensor, ones but for the channel axis. The state dict holds ``scale`` and ``signed``, or
    ``input_low`` and ``input_range``, always linear, though with ``logarithm_scale`` the
    trained parameter is the logarithm. The formulas are those of ``formula.py``.

    ``enabled`` False makes it the identity. While ``observer`` is set, each input goes to it
    and passes unchanged. ``initialized`` says whether the range has been set or loaded.
    """

    signed: torch.Tensor
    input_low: nn.Parameter

    def __init__(self, scheme: Scheme, shape: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.scheme = scheme
        self.shape = tuple(shape)
        self.initialized = False
        self.observer: Callable[[torch.Tensor], Any] | None = None
        self._enabled = True
        self._axis = _channel_axis(scheme, self.shape)
        self._span_name = "scale" if scheme.mode == "symmetric" else "input_range"
        name = f"logarithm_of_{self._span_name}" if scheme.logarithm_scale else self._span_name
        start = torch.zeros(self.shape) if scheme.logarithm_scale else torch.ones(self.shape)
        self.register_parameter(name, nn.Parameter(start))
        self._parameter_name = name
        if scheme.mode == "symmetric":
            # A number, not a bool: averages of copies (torch.optim.swa_utils) add buffers up.
            self.register_buffer("signed", torch.tensor(float(bool(scheme.signed))))
        else:
            self.register_parameter("input_low", nn.Parameter(torch.zeros(self.shape)))

    # --- what runs in training -------------------------------------------------------------

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (any floating dtype and layout) on the grid."""
        if self.observer is not None:
            self.observer(x.detach())
            return x
        if not x.is_floating_point():
            return x
        if not self._enabled:
            return kernels.passed(x, self.parameters())
        low = self.input_low if self.scheme.mode == "asymmetric" else None
        with torch.no_grad():
            grid = self._grid()
            if self.scheme.scaled_gradient:
                grid[ERROR_GAIN:] *= self.gradient_factor(x, grid)
        return self._quantized(x, grid, low)

    def _quantized(
        self, x: torch.Tensor, grid: torch.Tensor, low: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return x on the grid: by its sign where the grid has no zero, which data may decide."""
        span = self._span_parameter
        if not self._has_signs:
            return kernels.fake_quantize(x, grid, span=span, low=low, axis=self._axis)
        scale, gain = grid[HIGH].view(self.shape), grid[ABOVE_GAIN].view(self.shape)
        signs = sign_times_scale(x, span, scale=scale, gain=gain)
        if self.scheme.signed:
            return signs
        unsigned = kernels.fake_quantize(x, grid, span=span, axis=self._axis)
        return torch.where(self.signed > 0.5, signs, unsigned)

    @property
    def _has_signs(self) -> bool:
        """Whether the grid may be that of one signed bit: two values and no zero."""
        scheme = self.scheme
        return scheme.bits == 1 and scheme.mode == "symmetric" and scheme.signed is not False

    def gradient_factor(self, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Return ``√(q³ / n)``, by which the gradients of the range are multiplied.

        n is the number of values of x that one range is for (in one sample), q the highest code.
        The step s = scale / q then gets its gradient times 1 / √(n · q), and moves at the same
        pace relative to its size as the weights do (Esser et al. 2020, arXiv:1902.08153,
        section 2.2). The plain gradient is a sum over n values: with few bits it is too large.
        """
        samples = 1 if self.scheme.weight or x.dim() < 2 else x.shape[0]
        count = x.numel() / (samples * grid.shape[1])
        highest = grid[HIGHEST] - (grid[LOWEST] if self.scheme.mode == "asymmetric" else 0)
        return (highest**3 / max(count, 1)).sqrt()

    def _grid(self) -> torch.Tensor:
        """Return the rows of ``kernels.fake_quantize``, float32 [10, channels]."""
        if self.scheme.mode == "symmetric":
            return self._symmetric_grid()
        return self._asymmetric_grid()

    def _symmetric_grid(self) -> torch.Tensor:
        high, gain = self._safe_span()
        level_low, level_high = self._levels(high)
        step = high / level_high
        multiplier = self.scheme.lr_multiplier
        gain = gain if multiplier is None else gain * multiplier
        # the scale is level_high steps; the older gradient takes it for the whole range
        steps = level_high if self.scheme.scaled_gradient else level_high - level_low
        rows = (
            *(step, 1.0 / step, level_low.expand_as(step), level_high.expand_as(step)),
            *(step * level_low, high),
            *(gain / steps, gain, gain * (level_low / level_high), gain),
        )
        return torch.stack(rows)

    def _asymmetric_grid(self) -> torch.Tensor:
        span, gain = self._safe_span()
        intervals = self.scheme.levels(False)[1]
        low = self.input_low.detach().flatten().float()
        step, zero, low, high = _tuned(low, span, intervals)
        multiplier = 1.0 if self.scheme.lr_multiplier is None else self.scheme.lr_multiplier
        gain = gain * multiplier
        rows = (
            *(step, 1.0 / step, -zero, intervals - zero, low, high),
            *(gain / intervals, gain, gain * 0.0, torch.full_like(gain, multiplier)),
        )
        return torch.stack(rows)

    def _safe_span(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positive scale or range, and its derivative by the parameter; flat."""
        stored = self._span_parameter.detach().flatten().float()
        if self.scheme.logarithm_scale:
            span = stored.exp()
            return span, span
        # of the two derivatives at zero, the one that lets it leave zero
        return stored.abs() + EPSILON, torch.where(stored < 0, -1.0, 1.0)

    def _levels(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ends of the symmetric grid, chosen on the device: no value is waited for."""
        positive, both = self.scheme.levels(False), self.scheme.levels(True)
        signed = self.signed > 0.5
        low = torch.where(signed, float(both[0]), float(positive[0]))
        high = torch.where(signed, float(both[1]), float(positive[1]))
        return low.to(like.dtype), high.to(like.dtype)

    @property
    def _span_parameter(self) -> nn.Parameter:
        return self._parameters[self._parameter_name]  # type: ignore[return-value]  # registered

    @property
    def enabled(self) -> bool:
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = bool(value)

    # --- the range -------------------------------------------------------------------------

    @torch.no_grad()
    def set_range(self, minimum: torch.Tensor, maximum: torch.Tensor) -> None:
        """Set the range from the least and greatest value seen, of ``shape`` or broadcastable.

        Symmetric: ``scale`` is the greater magnitude, and the grid is signed if any value was
        negative, unless the scheme says. Asymmetric: the range, widened to include zero. A
        channel without values other than zero takes the largest channel's range, a tensor
        without them the range 1. Raises ``DataError`` for NaN, infinity and shapes that don't
        fit.
        """
        low = self._statistic(minimum, "minimum")
        high = self._statistic(maximum, "maximum")
        if bool((low > high).any()):
            raise DataError(f"{self._title()}: the minimum lies above the maximum")
        if self.scheme.mode == "symmetric":
            negative = bool((low < 0).any())
            self.signed.fill_(negative if self.scheme.signed is None else self.scheme.signed)
            self._store(_floored(torch.maximum(low.abs(), high.abs())))
        else:
            low = low.clamp(max=0)
            high = high.clamp(min=0)
            span = high - low
            # rounded up, so that low + span does not fall short of the greatest value
            span = torch.where(low + span < high, span * (1 + torch.finfo(span.dtype).eps), span)
            self.input_low.copy_(low)
            self._store(_floored(span))
        self.initialized = True

    def _statistic(self, value: torch.Tensor, name: str) -> torch.Tensor:
        value = torch.as_tensor(value).detach().to(self._span_parameter.device, torch.float32)
        try:
            value = value.expand(self.shape) if value.numel() == 1 else value.reshape(self.shape)
        except RuntimeError as error:
            raise DataError(
                f"{self._title()}: {name} has shape {tuple(value.shape)}, expected {self.shape}"
            ) from error
        if not bool(torch.isfinite(value).all()):
            raise DataError(
                f"{self._title()}: the {name} of the calibration data is NaN or infinite. "
                f"Expected finite values. Check the data given to NNCFConfig for initialization "
                f"and that the uncompressed model gives finite results on it."
            )
        return value

    def _store(self, span: torch.Tensor) -> None:
        self._span_parameter.copy_(span.log() if self.scheme.logarithm_scale else span)

    # --- what is deployed ------------------------------------------------------------------

    @torch.no_grad()
    def quantization_parameters(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Return step, zero point (int32), both flat [channels], and the ends of the grid.

        A code stands for the value (code − zero point) · step.
        """
        grid = self._grid()
        low, high = self.level_range
        return grid[STEP].clone(), (low - grid[LOWEST]).to(torch.int32), low, high

    @property
    def level_range(self) -> tuple[int, int]:
        """The ends of the integer grid."""
        return self.scheme.levels(self.is_signed)

    @property
    def is_signed(self) -> bool:
        """Whether codes may be negative (asymmetric codes never are)."""
        return self.scheme.mode == "symmetric" and bool(self.signed > 0.5)

    @torch.no_grad()
    def bake(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight on the grid (itself while disabled)."""
        if not self._enabled:
            return weight.detach().clone()
        return self._quantized(weight.detach(), self._grid())

    def native(self) -> nn.Module:
        """Return a module of PyTorch's own operations that computes the same bits.

        Raises ``ExportError`` for a grid that does not fit into 8 bits.
        """
        if not self._enabled:
            return nn.Identity()
        step, zero_point, low, high = self.quantization_parameters()
        if low < -128 or high > (127 if low < 0 else 255):
            raise ExportError(
                f"{self._title()} has the grid {low}…{high}, which PyTorch's 8-bit operators "
                f"cannot express. Use at most 8 bits."
            )
        zero = not (self._has_signs and low < 0)
        return NativeQuantizer(step, zero_point, levels=(low, high), axis=self._axis, zero=zero)

    # --- state -----------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        stored = destination.pop(prefix + self._parameter_name)
        if self.scheme.logarithm_scale:  # float64, or the way back would change last bits
            stored = stored.double().exp()
        destination[prefix + self._span_name] = stored

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        linear = prefix + self._span_name
        missing: list[str] = arguments[2]
        if self.scheme.logarithm_scale and linear in state_dict:
            state_dict[prefix + self._parameter_name] = (
                state_dict.pop(linear).double().abs().clamp(min=SMALLEST).log()
            )
        self.initialized = (
            self.initialized
            or prefix + self._span_name in state_dict
            or (prefix + self._parameter_name in state_dict)
        )
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if self.scheme.logarithm_scale and prefix + self._parameter_name in missing:
            missing[missing.index(prefix + self._parameter_name)] = linear

    # --- for readers -----------------------------------------------------------------------

    @torch.no_grad()
    def describe(self) -> dict[str, Any]:
        """Return what this quantizer is, as JSON-able data (for statistics and reports)."""
        grid = self._grid()
        low, high = self.level_range
        return {
            "algorithm": self.scheme.algorithm,
            "bits": self.scheme.bits,
            "mode": self.scheme.mode,
            "signed": self.is_signed,
            "per_channel": self.scheme.per_channel,
            "channels": grid.shape[1],
            "weight": self.scheme.weight,
            "enabled": self._enabled,
            "levels": [low, high],
            "minimum": float(grid[LOW].min()),
            "maximum": float(grid[HIGH].max()),
        }

    def extra_repr(self) -> str:
        if self._span_parameter.device.type == "meta":
            return str(self.scheme)
        facts = self.describe()
        low, high = facts["levels"]
        text = f"{self.scheme}, codes {low}…{high} for values in "
        text += f"[{facts['minimum']:.4g}, {facts['maximum']:.4g}]"
        text += "" if self._enabled else ", disabled: passes its input unchanged"
        text += ", observing: passes its input unchanged" if self.observer is not None else ""
        return text if self.initialized else text + ", range not initialized"

    def _title(self) -> str:
        return f"Quantizer ({self.scheme})"


def _tuned(
    low: torch.Tensor, span: torch.Tensor, intervals: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return step, code of zero, low and high: ``formula.tune_range`` in float32."""
    high = (low + span).clamp(min=0.0)
    low = low.clamp(max=0.0)
    zero = torch.round(-low * (intervals / (high - low)))
    if_high_stays = high / (intervals - zero).clamp(min=1.0) * (zero < intervals)
    if_low_stays = -low / zero.clamp(min=1.0) * (zero > 0)
    step = torch.maximum(if_high_stays, if_low_stays)
    # the bound that stays is kept to the last bit, so that a value equal to it lies inside
    new_low = torch.where(if_low_stays >= if_high_stays, low, -zero * step)
    new_high = torch.where(if_high_stays >= if_low_stays, high, (intervals - zero) * step)
    return step, zero, new_low, new_high


def _floored(span: torch.Tensor) -> torch.Tensor:
    """Replace what is negligible by a range that can be trained (see ``set_range``)."""
    largest = span.max()
    if bool(largest < SMALLEST):
        return torch.ones_like(span)
    return torch.where(span < largest * NEGLIGIBLE, largest, span)


def _channel_axis(scheme: Scheme, shape: tuple[int, ...]) -> int | None:
    """Return the axis with one range per channel, None when there is one range in all."""
    axes = [axis for axis, length in enumerate(shape) if length != 1]
    if len(axes) > 1 or (axes and not scheme.per_channel):
        raise ValueError(
            f"parameters of shape {shape} do not fit a quantizer that is {scheme}: expected "
            f"ones everywhere{' but in one axis' if scheme.per_channel else ''}"
        )
    return axes[0] if axes else None
