# SPDX-License-Identifier: Apache-2.0
"""Options of the staged schedule, which quantization and binarization share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from nncf.options import (
    Count,
    NonNegative,
    Options,
    Positive,
    PositiveNumber,
    empty_is_unset,
    option,
)


class StagedOptions(Options):
    """The staged schedule: quantizers are switched on in the course of training."""

    batch_multiplier: Positive | None = option(
        None,
        "Batches whose gradients are summed before an optimizer step; read by the training script.",
    )
    activations_quant_start_epoch: Count = option(1, "Epoch from which activations are quantized.")
    weights_quant_start_epoch: Count = option(1, "Epoch from which weights are quantized.")
    lr_poly_drop_start_epoch: Count | None = option(
        None,
        "Epoch from which the learning rate falls polynomially; read by the training script.",
    )
    lr_poly_drop_duration_epochs: Positive = option(
        30,
        "Epochs that the fall of the learning rate takes; read by the training script.",
    )
    disable_wd_start_epoch: Count | None = option(
        None, "Epoch from which weight decay is 0; read by the training script."
    )
    base_lr: PositiveNumber = option(
        1e-3, "Learning rate at the start; read by the training script."
    )
    base_wd: NonNegative = option(1e-5, "Weight decay at the start; read by the training script.")


StagedSection = Annotated[StagedOptions | None, BeforeValidator(empty_is_unset)]
