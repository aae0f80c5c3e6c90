# SPDX-License-Identifier: Apache-2.0
"""Torch-Pruning on a network, with the settings that its documents recommend."""

from __future__ import annotations

import torch
from torch import nn


def outcome(model: nn.Module, x: torch.Tensor, ratio: float) -> str:
    """Prune a network and run it; return "runs, … M parameters" or why it does not."""
    import torch_pruning

    heads = {
        module.qkv: module.num_heads
        for module in model.modules()
        if hasattr(module, "qkv") and hasattr(module, "num_heads")
    }
    last = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1:]
    before = sum(parameter.numel() for parameter in model.parameters())
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            x,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            round_to=8,
            ignored_layers=last,
            num_heads=heads,
        )
        pruner.step()
        with torch.no_grad():
            model(torch.cat([x, x]))
    except Exception as error:  # noqa: BLE001  # whatever it is, this network cannot be pruned
        reason = str(error).splitlines()[:1]
        return f"fails: {type(error).__name__}: {reason[0][:60] if reason else ''}"
    left = sum(parameter.numel() for parameter in model.parameters())
    return f"runs, {left / 1e6:.2f} M" if left < before else "removes nothing"
