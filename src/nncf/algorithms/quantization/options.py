# SPDX-License-Identifier: Apache-2.0
"""Options of quantization. Those it shares with binarization are in files beside the folders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from nncf.algorithms.initializer_options import InitializerOptions, OverrideInitializer, Widths
from nncf.algorithms.quantization.scheme import Mode
from nncf.algorithms.staged_options import StagedOptions as StagedOptions
from nncf.algorithms.staged_options import StagedSection
from nncf.option_messages import Problem
from nncf.options import (
    Bits,
    Flag,
    Former,
    NonNegative,
    Options,
    Scope,
    Scopes,
    option,
)

TORCH = ("torch",)


# Four demands stand in two kinds of section, word for word.
MODE: Any = option(
    None,
    'Grid of the quantizer: "symmetric" about zero (only a scale is learned) or "asymmetric" '
    "(both ends of the range are learned). Wins over `preset`.",
)
BITS: Any = option(
    None,
    "Bits per value. Unset: the first choice of the hardware, which is 8. Other values need "
    'a `target_device` that supports them, or "TRIAL".',
)
SIGNED: Any = option(
    None,
    "Whether a symmetric grid covers negative values. Unset: decided from the data during "
    "range initialisation.",
)
PER_CHANNEL: Any = option(
    None,
    "One range per channel (true) or per tensor (false). Unset: the first choice of the "
    "hardware, which is per channel for weights and per tensor for activations.",
)


class QuantizerGroup(Options):
    """Demands on all quantizers of weights, or of activations; unset: the hardware decides."""

    mode: Mode | None = MODE
    bits: Bits | None = BITS
    adaptive_bits: Widths | None = option(
        None,
        "Bits that quantizers may have while the compression rate is set, by hand or by the "
        "adaptive loop: at rate 0 the most of them; a higher rate takes bits from the weights that "
        "need them least, and activations follow the weights that they meet. Unset: widths stay.",
        backends=TORCH,
    )
    signed: Flag | None = SIGNED
    per_channel: Flag | None = PER_CHANNEL
    logarithm_scale: Flag = option(
        False,
        "Learn the logarithm of the scale, so that a training step changes it by a factor. "
        "Checkpoints hold the plain value.",
    )
    ignored_scopes: Scopes = option((), "Operations that get no quantizer of this group.")
    target_scopes: Scopes | None = option(
        None, "If given, only these operations get quantizers of this group."
    )
    validate_scopes: Flag = option(
        True, "Whether a scope of this group that matches nothing is an error."
    )

    def rules(self) -> Iterator[Problem]:
        if self.bits is not None and self.adaptive_bits is not None:
            yield Problem(
                ("adaptive_bits",), ': "bits" says already how many. Remove one of the two.'
            )


class ActivationGroup(QuantizerGroup):
    """Demands on all quantizers of activations."""

    unified_scale_ops: tuple[tuple[Scope, ...], ...] = option(
        (),
        "Lists of operations whose input quantizers must share one range.",
    )

    def rules(self) -> Iterator[Problem]:
        yield from super().rules()
        for index, group in enumerate(self.unified_scale_ops):
            if len(group) < 2:
                yield Problem(
                    ("unified_scale_ops", index), ": name at least two operations to be unified."
                )


class QuantizerOverride(Options):
    """Demands on the quantizers of particular operations."""

    mode: Mode | None = MODE
    bits: Bits | None = BITS
    signed: Flag | None = SIGNED
    per_channel: Flag | None = PER_CHANNEL
    initializer: OverrideInitializer = option(
        OverrideInitializer(), "How the range is found for these operations."
    )


class ScopeOverrides(Options):
    """Demands on single operations, by scope; they win over the groups and the preset."""

    weights: dict[Scope, QuantizerOverride] = option({}, "Scope → demands on its weight quantizer.")
    activations: dict[Scope, QuantizerOverride] = option(
        {}, "Scope → demands on its activation quantizers."
    )


def _overflow_fix(disable_saturation_fix: Any) -> Any:
    if isinstance(disable_saturation_fix, bool):
        return "disable" if disable_saturation_fix else "enable"
    return disable_saturation_fix


class QuantizationOptions(Options):
    """Settings of ``{"algorithm": "quantization"}``."""

    former: ClassVar[tuple[Former, ...]] = (
        Former(
            "disable_saturation_fix",
            'Write "overflow_fix": "disable" for true, "enable" for false.',
            new="overflow_fix",
            convert=_overflow_fix,
        ),
        Former(
            "quantizable_subgraph_patterns",
            "Places of quantizers follow from the graph; use scopes to change them.",
        ),
    )

    adaptive_by: ClassVar[str] = '"weights": {"adaptive_bits": [8, 4, 2]}'

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
    scope_overrides: ScopeOverrides = option(ScopeOverrides(), "Demands on single operations.")
    first_and_last_bits: Bits | None = option(
        8,
        "Bits of the weights and inputs of the first and the last layers where `bits` or "
        "`adaptive_bits` of a group has fewer; null: they get those as well. `scope_overrides` win. "
        "Without effect beside `initializer.precision`.",
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
        None, "The staged schedule; if given, quantizers are switched on by epoch."
    )
    ignored_scopes: Scopes = option((), "Operations that get no quantizer.")
    target_scopes: Scopes | None = option(None, "If given, only these operations get quantizers.")
    validate_scopes: Flag = option(True, "Whether a scope that matches nothing is an error.")
    compression_lr_multiplier: NonNegative | None = option(
        None,
        "Factor on the gradients of the quantizers' parameters; wins over the key of the same "
        "name at the top level.",
    )

    @property
    def is_adaptive(self) -> bool:
        return self.weights.adaptive_bits is not None

    def rules(self) -> Iterator[Problem]:
        if self.activations.adaptive_bits is not None and not self.is_adaptive:
            yield Problem(
                ("activations", "adaptive_bits"),
                ": activations follow the weights, and those have no adaptive_bits. Give "
                "weights.adaptive_bits too, or remove it here.",
            )
        if not self.is_adaptive:
            return
        rivals = {"initializer.precision": self.initializer.precision, "params": self.params}
        for name, rival in rivals.items():
            if rival is not None:
                yield Problem(
                    ("weights", "adaptive_bits"),
                    f": {name} decides about quantizers as well. Remove one of the two.",
                )
