# SPDX-License-Identifier: Apache-2.0
"""A training run that can be cut in two: alone, or as one of several processes of torchrun.

``python -m tests.contract.training CASE:MODEL:FIRST:LAST:CHECKPOINT:OUT …`` trains the steps
FIRST to LAST − 1, from CHECKPOINT (empty: from scratch), and saves everything to OUT; ``{rank}``
is replaced by the number of the process.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import nncf
from tests.contract.cases import BY_NAME, compress
from tests.contract.models import CLASSES, EXAMPLES, logits

STEPS_PER_EPOCH = 2


def train(case_name: str, model_name: str, steps: range, checkpoint: Any = None) -> dict[str, Any]:
    """Train the numbered steps and return the checkpoint after the last."""
    case, example = BY_NAME[case_name], EXAMPLES[model_name]
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(rank)
    state = checkpoint and checkpoint["compression_state"]
    # Processes start from different weights and different data: they must find agreement.
    controller, model = compress(case, example, state, seed=rank)
    run: Any = model
    if dist.is_initialized():
        run = torch.nn.parallel.DistributedDataParallel(model)
        controller.distributed()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    if checkpoint:
        nncf.load_state(run, checkpoint["model"], is_resume=True)
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        torch.set_rng_state(checkpoint["random"])
    loss = torch.zeros(())
    for step in steps:
        if step % STEPS_PER_EPOCH == 0:
            controller.scheduler.epoch_step()
        controller.scheduler.step()
        run.train()
        args, kwargs = example.batch(1000 + 10 * step + rank)
        targets = torch.arange(4) % CLASSES
        loss = torch.nn.functional.cross_entropy(logits(run(*args, **kwargs)), targets)
        optimizer.zero_grad()
        (loss + controller.loss()).backward()
        optimizer.step()
        if step % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1:
            schedule.step()
    return {
        "model": run.state_dict(),
        "compression_state": controller.get_compression_state(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "loss": loss.detach(),
    }


def main(*runs: str) -> None:
    """Make the runs of the command line, one after the other."""
    torch.set_num_threads(1)
    rank = 0
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    for run in runs:
        case, model, first, last, checkpoint, out = run.format(rank=rank).split(":")
        before = torch.load(checkpoint, weights_only=True) if checkpoint else None
        after = train(case, model, range(int(first), int(last)), before)
        torch.save(after, Path(out))
    if dist.is_initialized():
        gc.collect()  # no wrapper of a finished run may outlive the processes' connections
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
