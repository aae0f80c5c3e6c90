# SPDX-License-Identifier: Apache-2.0
"""Binarizers as PyTorch modules: tensors of any values in, tensors of two values out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable

from nncf.algorithms.binarization.formula import TOP_SHARE
from nncf.algorithms.binarization.scheme import Binarizer
from nncf.compression.layout import Insert
from nncf.errors import DataError, ModelError
from nncf.torch import kernels

SMALLEST = 1e-12
"""No scale is made smaller: float32 must be able to divide by it."""


def make_op(insert: Insert) -> nn.Module:
    """Return the running op of one Insert whose description is a Binarizer."""
    assert isinstance(insert.op, Binarizer)
    if insert.op.weight:
        return WeightBinarizer(insert.op, insert.shape)
    return ActivationBinarizer(insert.op, insert.shape)


# --- weights -------------------------------------------------------------------------------


class WeightBinarizer(nn.Module):
    """Gives each weight the mean magnitude of its channel, or of all, with its own sign.

    It has no parameters: the magnitude follows the weight. ``enabled`` False makes it the
    identity.
    """

    spent_once_baked = True

    initialized = False
    """Looks away while data is observed: activations are those of the model in floating point."""

    def __init__(self, scheme: Binarizer, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scheme = scheme
        self.shape = tuple(shape)
        self.enabled = True
        self.observer: Callable[[torch.Tensor], Any] | None = None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if not self.enabled or self.observer is not None:
            return weight
        return _binarized(weight, self.scheme.channel_axis)

    @torch.no_grad()
    def bake(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight in its two values (itself while disabled)."""
        return self.forward(weight.detach())

    def native(self) -> nn.Module:
        """Return what binarizes a weight that cannot be baked, since others read it as it is."""
        return SignTimesMean(self.scheme.channel_axis)

    def describe(self) -> dict[str, Any]:
        """Return what this binarizer is, as JSON-able data (for statistics and reports)."""
        return {
            "algorithm": self.scheme.algorithm,
            "bits": 1,
            "rule": self.scheme.rule,
            "weight": True,
            "enabled": self.enabled,
        }

    def extra_repr(self) -> str:
        return f"{self.scheme}" + ("" if self.enabled else ", disabled: passes its input unchanged")


class SignTimesMean(nn.Module):
    """The same in a stripped model."""

    def __init__(self, axis: int | None) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return _two_values(weight, self.axis)

    def shorten(self, masks: Mapping[int, torch.Tensor]) -> None:
        """Follow a weight that loses channels: nothing here has one element for each."""


def _magnitude(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return the mean of |weight| over each index of ``axis``, or over all, in float32."""
    axes = [other for other in range(weight.dim()) if other != axis]
    return weight.float().abs().mean(axes, keepdim=True)


def _two_values(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    magnitude = _magnitude(weight, axis).to(weight.dtype)
    return torch.where(weight > 0, magnitude, -magnitude)


class _Binarized(torch.autograd.Function):
    """Backward, the sign counts as the identity."""

    @staticmethod
    def forward(_ctx: Any, weight: torch.Tensor, axis: int | None) -> torch.Tensor:
        return _two_values(weight, axis)

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def _binarized(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    return _Binarized.apply(weight, axis)  # type: ignore[no-any-return,no-untyped-call]  # apply is untyped


# --- activations ---------------------------------------------------------------------------


class ActivationBinarizer(nn.Module):
    """Gives each value S where it is above T · S, else 0; ``S = exp(s)``, ``T = sigmoid(t)``.

    s, one number, and t, one for each channel, are trained (``logarithm_of_scale``,
    ``logit_of_threshold``). S comes from data before the training (``set_range``), or else from
    the first training forward; ``from_data`` says in the state dict whether it has come.
    ``enabled`` False makes it the identity. While ``observer`` is set, each input goes to it and
    passes unchanged.
    """

    from_data: torch.Tensor

    def __init__(self, scheme: Binarizer, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scheme = scheme
        self.shape = tuple(shape)
        self.enabled = True
        self.initialized = False
        self.observer: Callable[[torch.Tensor], Any] | None = None
        self.logarithm_of_scale = nn.Parameter(torch.zeros(1))
        self.logit_of_threshold = nn.Parameter(torch.zeros(self.shape))
        # A number, not a bool: averages of copies (torch.optim.swa_utils) add buffers up.
        self.register_buffer("from_data", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (any floating dtype) in two values."""
        if self.observer is not None:
            self.observer(x.detach())
            return x
        if not x.is_floating_point():
            return x
        if not self.enabled:
            return kernels.passed(x, self.parameters())
        if self.training and not self.initialized:
            self._start_from(x.detach())
        return _switched(x, self.logarithm_of_scale, self.logit_of_threshold, self.scheme)

    @torch.no_grad()
    def _start_from(self, x: torch.Tensor) -> None:
        """Set the scale to the value that 0.1 % of x reach; all ranks take their mean.

        Raises ModelError in a replica of DataParallel, where it would be lost.
        """
        if getattr(self, "_is_replica", False):
            raise ModelError(
                "A binarized activation has no scale yet, and a replica of DataParallel cannot keep "
                "one. Expected scales from data: call nncf.register_default_init_args(nncf_config, "
                "train_loader) before create_compressed_model, or run one training forward before "
                "wrapping the model."
            )
        count = max(1, int(TOP_SHARE * x.numel() + 0.5))
        self._set_scale(_mean_over_ranks(x.float().flatten().topk(count).values[-1]))

    def _set_scale(self, scale: torch.Tensor) -> None:
        usable = torch.where(scale > SMALLEST, scale, torch.ones_like(scale))
        self.logarithm_of_scale.copy_(usable.log())
        self.logit_of_threshold.zero_()
        self.from_data.fill_(1.0)
        self.initialized = True

    @torch.no_grad()
    def set_range(self, _minimum: torch.Tensor, maximum: torch.Tensor) -> None:
        """Set the scale to the greatest value seen, and all thresholds to their half.

        Raises ``DataError`` when it is NaN or infinite.
        """
        scale = torch.as_tensor(maximum).detach().to(self.logarithm_of_scale.device, torch.float32)
        if not bool(torch.isfinite(scale).all()):
            raise DataError(
                "the largest value of the calibration data is NaN or infinite. Expected finite "
                "values: check the data given to NNCFConfig for initialization"
            )
        self._set_scale(scale.max())

    @torch.no_grad()
    def wait_for_data(self) -> None:
        """Let the next training forward set the scale."""
        self.initialized = False
        self.from_data.fill_(0.0)

    def scale(self) -> torch.Tensor:
        """Return S, float32 [1]."""
        return self.logarithm_of_scale.detach().float().exp()

    def threshold(self) -> torch.Tensor:
        """Return T · S, above which a value counts, float32, ones but for the channel axis."""
        return _boundary(self.logarithm_of_scale.detach(), self.logit_of_threshold.detach())

    def bake(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a parameter that is used as an activation, in its two values."""
        return self.native()(weight.detach())

    def native(self) -> nn.Module:
        """Return a module of PyTorch's own operations that computes the same bits."""
        return Switch(self.threshold(), self.scale(), self.scheme.channel_axis)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        known = state_dict.get(prefix + "from_data")
        if known is not None:
            self.initialized = bool(known > 0.5)

    def describe(self) -> dict[str, Any]:
        """Return what this binarizer is, as JSON-able data (for statistics and reports)."""
        return {
            "algorithm": self.scheme.algorithm,
            "bits": 1,
            "rule": self.scheme.rule,
            "weight": False,
            "enabled": self.enabled,
            "scale": float(self.scale()),
        }

    def extra_repr(self) -> str:
        if self.logarithm_of_scale.device.type == "meta":
            return str(self.scheme)
        text = f"{self.scheme}, values 0 and {float(self.scale()):.4g}"
        text += "" if self.enabled else ", disabled: passes its input unchanged"
        return text if self.initialized else text + ", scale not initialized"


class Switch(nn.Module):
    """The binarizer of an activation in a stripped model: ``high`` above ``threshold``, else 0."""

    threshold: torch.Tensor
    high: torch.Tensor
    low: torch.Tensor

    def __init__(self, threshold: torch.Tensor, high: torch.Tensor, axis: int | None) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("threshold", threshold)
        self.register_buffer("high", high.reshape(()))
        self.register_buffer("low", torch.zeros_like(high.reshape(())))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x in two values, compared in float32, in the dtype of x."""
        if x.dtype == torch.float32:
            return torch.where(x > self.threshold, self.high, self.low)
        return torch.where(x > self.threshold, self.high.to(x.dtype), self.low.to(x.dtype))

    def two_levels(self) -> torch.Tensor:
        """Return the upper value; the lower one is 0."""
        return self.high

    def shorten(self, masks: Mapping[int, torch.Tensor]) -> None:
        """Follow a tensor that loses channels: by axis, ``masks`` are True for those that stay."""
        if self.axis in masks:
            self.threshold = self.threshold[masks[self.axis].to(self.threshold.device)]

    def extra_repr(self) -> str:
        return f"0 or {float(self.high):.4g}, {self.threshold.shape[0]} thresholds"


def _mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of what all processes that train together passed; alone, what was passed."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _boundary(logarithm: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    return logit.float().sigmoid() * logarithm.float().exp()


class _Switched(torch.autograd.Function):
    """``S · [x > T · S]`` with the gradients of ``formula.activation_gradients``, times paces."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        logarithm: torch.Tensor,
        logit: torch.Tensor,
        scheme: Binarizer,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, logarithm, logit)
        ctx.scheme = scheme
        high = logarithm.float().exp().reshape(()).to(x.dtype)
        return torch.where(x > _boundary(logarithm, logit), high, torch.zeros_like(high))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, logarithm, logit = ctx.saved_tensors
        scale, threshold = logarithm.float().exp(), logit.float().sigmoid()
        g, values = gradient.float(), x.float()
        below = values <= scale
        paces = _paces(x, logit, ctx.scheme)
        dx = to_logarithm = to_logit = None
        if ctx.needs_input_grad[0]:
            dx = torch.where(below & (values >= 0), gradient, 0.0)
        if ctx.needs_input_grad[1]:
            is_high = (values > threshold * scale).float()
            part = torch.where(below, is_high - values / scale, 1.0)
            to_logarithm = ((g * part).sum() * scale * paces[0]).to(logarithm.dtype)
        if ctx.needs_input_grad[2]:
            inside = torch.where((values > 0) & (values < scale), g, 0.0)
            slope = threshold * (1 - threshold) * paces[1]
            to_logit = (_sum_like(inside, logit) * -slope).to(logit.dtype)
        return dx, to_logarithm, to_logit, None


def _paces(x: torch.Tensor, logit: torch.Tensor, scheme: Binarizer) -> tuple[float, float]:
    """Return the factors on the gradients of s and of t: ``1 / √n``, times ``lr_multiplier``.

    n is the number of values in one sample that s, or one element of t, is for. So both move at
    the pace of the weights (Esser et al. 2020, arXiv:1902.08153, section 2.2): their plain
    gradients are sums over n values, with which an optimizer of one learning rate for all diverges.
    """
    factor = 1.0 if scheme.lr_multiplier is None else scheme.lr_multiplier
    samples = x.shape[0] if scheme.channel_axis else 1
    count = max(x.numel() / max(samples, 1), 1)
    return factor * count**-0.5, factor * max(count / logit.numel(), 1) ** -0.5


def _sum_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return x summed over the axes that ``like`` lacks or has with length one."""
    missing = x.dim() - like.dim()
    axes = [*range(missing), *(missing + k for k, n in enumerate(like.shape) if n == 1)]
    return (x.sum(axes, keepdim=True) if axes else x).reshape(like.shape)


def _switched(
    x: torch.Tensor, logarithm: torch.Tensor, logit: torch.Tensor, scheme: Binarizer
) -> torch.Tensor:
    return _Switched.apply(x, logarithm, logit, scheme)  # type: ignore[no-any-return,no-untyped-call]  # apply is untyped
