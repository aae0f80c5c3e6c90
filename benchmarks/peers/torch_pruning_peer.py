# SPDX-License-Identifier: Apache-2.0
"""Torch-Pruning on a network, with the settings that its documents recommend."""

from __future__ import annotations

import multiprocessing
import resource
from multiprocessing.connection import Connection

import torch
from torch import nn

GIGABYTES, SECONDS = 8, 120
"""What one network may take."""


def outcome(model: nn.Module, x: torch.Tensor, ratio: float) -> str:
    """Prune a network in a process of its own; see ``prune``."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, model, x, ratio))
    process.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            return f"fails: not done after {SECONDS} s"
        return str(receiver.recv())
    except EOFError:
        return f"fails: its process died, with {GIGABYTES} GB to use"
    finally:
        process.kill()
        process.join()


def _report(sender: Connection, model: nn.Module, x: torch.Tensor, ratio: float) -> None:
    torch.set_num_threads(1)  # a forked process has no threads of its parent's pool
    size = GIGABYTES << 30
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    sender.send(prune(model, x, ratio))


def _correct_sizes(model: nn.Module) -> bool:
    """Correct attributes that a forward takes sizes from, as the peer's own examples do."""
    found = False
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
        model.hidden_dim, found = model.conv_proj.out_channels, True
    for module in model.modules():
        if hasattr(module, "qkv") and hasattr(module, "head_dim"):
            width = module.qkv.weight.shape[0] // 3
            module.head_dim, found = width // module.num_heads, True
            if hasattr(module, "attn_dim"):
                module.attn_dim = width
    return found


def prune(model: nn.Module, x: torch.Tensor, ratio: float) -> str:
    """Prune a network and run it; return "runs, … M parameters" or why it does not."""
    import torch_pruning

    heads = {
        getattr(module, "qkv", module): module.num_heads
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        or (hasattr(module, "qkv") and hasattr(module, "num_heads"))
    }
    inside = nn.modules.linear.NonDynamicallyQuantizableLinear  # goes with its MultiheadAttention
    ignored = [module for module in model.modules() if isinstance(module, inside)]
    ignored += [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1:]
    before = sum(parameter.numel() for parameter in model.parameters())
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            x,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            round_to=8,
            ignored_layers=ignored,
            num_heads=heads,
        )
        pruner.step()
        by_hand = ", sizes set by hand" if _correct_sizes(model) else ""
        with torch.no_grad():
            model(torch.cat([x, x]))
    except MemoryError:
        return f"fails: needs more than {GIGABYTES} GB"
    except Exception as error:  # noqa: BLE001  # whatever it is, this network cannot be pruned
        reason = f": {str(error).splitlines()[0][:60]}" if str(error) else ""
        return f"fails: {type(error).__name__}{reason}"
    left = sum(parameter.numel() for parameter in model.parameters())
    return f"runs, {left / 1e6:.2f} M{by_hand}" if left < before else "removes nothing"
