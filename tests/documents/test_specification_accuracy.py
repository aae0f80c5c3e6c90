# SPDX-License-Identifier: Apache-2.0
"""The accuracy-aware blocks of the specification run as written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nncf.training.calls import Calls
from tests.documents.test_specification import run_block
from tests.training import models


@pytest.mark.parametrize("mode", ["early_exit", "adaptive_compression_level"])
def test_accuracy_aware_training(mode: str) -> None:
    """The loop is made, takes functions of the signatures shown, and returns the model."""
    torch.set_num_threads(1)
    config = models.config(models.PRUNING, models.QUANTIZATION, mode=mode, maximal_total_epochs=4)
    controller, model = models.compressed(config)
    space: dict[str, Any] = {
        "nncf_config": config,
        "compression_ctrl": controller,
        "uncompressed_model_accuracy": models.trained()[1],
        "model": model,
    }
    run_block("accuracy_aware_create", space)
    run_block("accuracy_aware_functions", space)
    shown = Calls(
        *(space["train_epoch_fn"], space["validate_fn"]),
        *(space["configure_optimizers_fn"], space["dump_checkpoint_fn"]),
    )
    saved = []

    # the block shows empty functions: these are of the same signatures
    def train_epoch_fn(compression_ctrl: Any, model: Any, **kwargs: Any) -> None:
        models.train_epoch(compression_ctrl, model, kwargs["optimizer"])
        shown.train_epoch_fn(compression_ctrl, model, **kwargs)

    def validate_fn(model: Any, **kwargs: Any) -> float:
        shown.validate_fn(model, **kwargs)
        return models.accuracy(model)

    def dump_checkpoint_fn(
        model: Any, compression_controller: Any, accuracy_aware_runner: Any, save_dir: str
    ) -> None:
        saved.append(save_dir)

    space |= {
        "train_epoch_fn": train_epoch_fn,
        "validate_fn": validate_fn,
        "configure_optimizers_fn": models.optimizers(model),
        "dump_checkpoint_fn": dump_checkpoint_fn,
    }
    run_block("accuracy_aware_run", space)
    assert space["model"] is model
    statistics = space["training_loop"].statistics
    assert len(saved) == len(statistics.attempts)
    assert statistics.compressed_accuracy == models.accuracy(model)
