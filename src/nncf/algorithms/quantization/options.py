# SPDX-License-Identifier: Apache-2.0
"""Options of quantization. The sections under ``initializer`` are in ``initializer.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator

from nncf.algorithms.quantization.initializer import InitializerOptions, OverrideInitializer
from nncf.algorithms.quantization.scheme import Mode
from nncf.option_messages import Problem
from nncf.options import (
    Bits,
    Count,
    Flag,
    NonNegative,
    Options,
    Positive,
    PositiveNumber,
    Scope,
    Scopes,
    empty_is_unset,
    option,
)

TORCH = ("torch",)


class Constraints(Options):
    """What a user demands of quantizers; whatever is unset is chosen from the hardware's list."""

    mode: Mode | None = option(
        None,
        'Grid of the quantizer: "symmetric" about zero (only a scale is learned) or "asymmetric" '
        "(both ends of the range are learned). Wins over `preset`.",
    )
    bits: Bits | None = option(
        None,
        "Bits per value. Unset: the first choice of the hardware, which is 8. Other values need "
        'a `target_device` that supports them, or "TRIAL".',
    )
    signed: Flag | None = option(
        None,
        "Whether a symmetric grid covers negative values. Unset: decided from the data during "
        "range initialisation.",
    )
    per_channel: Flag | None = option(
        None,
        "One range per channel (true) or per tensor (false). Unset: the first choice of the "
        "hardware, which is per channel for weights and per tensor for activations.",
    )


class QuantizerGroup(Constraints):
    """Demands on all quantizers of weights, or of activations."""

    logarithm_scale: Flag = option(
        False,
        "Learn the logarithm of the scale, so that a training step changes it by a factor. "
        "Checkpoints hold the plain value.",
        backends=TORCH,
    )
    ignored_scopes: Scopes = option((), "Operations that get no quantizer of this group.")
    target_scopes: Scopes | None = option(
        None, "If given, only these operations get quantizers of this group."
    )
    validate_scopes: Flag = option(
        True, "Whether a scope of this group that matches nothing is an error."
    )


class ActivationGroup(QuantizerGroup):
    """Demands on all quantizers of activations."""

    unified_scale_ops: tuple[tuple[Scope, ...], ...] = option(
        (),
        "Lists of operations whose input quantizers must share one range.",
        backends=TORCH,
    )

    def rules(self) -> Iterator[Problem]:
        for index, group in enumerate(self.unified_scale_ops):
            if len(group) < 2:
                yield Problem(
                    ("unified_scale_ops", index), ": name at least two operations to be unified."
                )


class QuantizerOverride(Constraints):
    """Demands on the quantizers of particular operations."""

    initializer: OverrideInitializer = option(
        OverrideInitializer(), "How the range is found for these operations."
    )


class ScopeOverrides(Options):
    """Demands on single operations, by scope; they win over the groups and the preset."""

    weights: dict[Scope, QuantizerOverride] = option(
        {}, "Scope → demands on its weight quantizer.", backends=TORCH
    )
    activations: dict[Scope, QuantizerOverride] = option(
        {}, "Scope → demands on its activation quantizers.", backends=TORCH
    )


class StagedOptions(Options):
    """The staged schedule: quantizers are switched on in the course of training."""

    batch_multiplier: Positive | None = option(
        None,
        "Batches whose gradients are summed before an optimizer step; read by the training script.",
        backends=TORCH,
    )
    activations_quant_start_epoch: Count = option(
        1, "Epoch from which activations are quantized.", backends=TORCH
    )
    weights_quant_start_epoch: Count = option(
        1, "Epoch from which weights are quantized.", backends=TORCH
    )
    lr_poly_drop_start_epoch: Count | None = option(
        None,
        "Epoch from which the learning rate falls polynomially; read by the training script.",
        backends=TORCH,
    )
    lr_poly_drop_duration_epochs: Positive = option(
        30,
        "Epochs that the fall of the learning rate takes; read by the training script.",
        backends=TORCH,
    )
    disable_wd_start_epoch: Count | None = option(
        None, "Epoch from which weight decay is 0; read by the training script.", backends=TORCH
    )
    base_lr: PositiveNumber = option(
        1e-3, "Learning rate at the start; read by the training script.", backends=TORCH
    )
    base_wd: NonNegative = option(
        1e-5, "Weight decay at the start; read by the training script.", backends=TORCH
    )


StagedSection = Annotated[StagedOptions | None, BeforeValidator(empty_is_unset)]


class QuantizationOptions(Options):
    """Settings of ``{"algorithm": "quantization"}``."""

    algorithm: Literal["quantization"] = option("quantization", "Names this algorithm.")
    initializer: InitializerOptions = option(
        InitializerOptions(), "What happens before training: ranges, batch norm, bit widths."
    )
    preset: Literal["performance", "mixed"] | None = option(
        None,
        '"performance": symmetric weights and activations. "mixed": symmetric weights, '
        'asymmetric activations. Unset: "performance" where the target device knows presets.',
    )
    quantize_inputs: Flag = option(True, "Whether the inputs of the model are quantized.")
    quantize_outputs: Flag = option(False, "Whether the outputs of the model are quantized.")
    weights: QuantizerGroup = option(QuantizerGroup(), "Demands on all weight quantizers.")
    activations: ActivationGroup = option(
        ActivationGroup(), "Demands on all activation quantizers."
    )
    scope_overrides: ScopeOverrides = option(
        ScopeOverrides(), "Demands on single operations.", backends=TORCH
    )
    export_to_onnx_standard_ops: Flag | None = option(
        None,
        "true: ONNX files hold QuantizeLinear and DequantizeLinear. false: they hold OpenVINO's "
        "FakeQuantize. Unset: the standard operations where the bit widths allow it.",
        backends=TORCH,
    )
    overflow_fix: Literal["enable", "disable", "first_layer_only"] = option(
        "enable",
        "Keep 8-bit weights on half of their grid, so that sums on x86 processors without VNNI "
        "cannot overflow (target devices ANY and CPU): for all layers, none, or the first ones.",
    )
    params: StagedSection = option(
        None, "The staged schedule; if given, quantizers are switched on by epoch.", backends=TORCH
    )
    ignored_scopes: Scopes = option((), "Operations that get no quantizer.")
    target_scopes: Scopes | None = option(None, "If given, only these operations get quantizers.")
    validate_scopes: Flag = option(True, "Whether a scope that matches nothing is an error.")
    compression_lr_multiplier: NonNegative | None = option(
        None,
        "Factor on the gradients of the quantizers' parameters; wins over the key of the same "
        "name at the top level.",
        backends=TORCH,
    )
