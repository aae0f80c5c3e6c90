# SPDX-License-Identifier: Apache-2.0
"""What the loops need of PyTorch: optimizers, random numbers, files, several processes."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from nncf.compression.files import replacing
from nncf.errors import CheckpointError, TrainingError
from nncf.torch.distributed import from_main, is_distributed, is_main_process
from nncf.torch.state import load_state

_RATES = {"lr", "initial_lr", "max_lr", "min_lr"}
"""Entries of an optimizer's parameter groups that are learning rates."""


class Framework:
    """The optimizers of a run, and the state of a model in files.

    ``optimizer`` and ``lr_scheduler`` are what ``configure_optimizers_fn`` returned: one of each,
    lists, or None.
    """

    extension = ".pth"

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer: Any = None
        self.lr_scheduler: Any = None

    # --- optimizers --------------------------------------------------------------------------

    def configure(self, returned: Any, factor: float = 1.0) -> None:
        """Take what ``configure_optimizers_fn`` returned, learning rates times ``factor``."""
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise TrainingError(
                f"configure_optimizers_fn returned {type(returned).__name__}: expected a pair, "
                "(optimizer, lr_scheduler), with None for what there is not."
            )
        self.optimizer, self.lr_scheduler = returned
        for optimizer in self._optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TrainingError(
                    f"configure_optimizers_fn returned {type(optimizer).__name__} as optimizer: "
                    "expected a torch.optim.Optimizer, a list of them or None."
                )
        if factor != 1.0:
            self._scale_learning_rates(factor)

    def _scale_learning_rates(self, factor: float) -> None:
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        for group in groups:
            for name in _RATES & group.keys():
                group[name] = group[name] * factor
        for scheduler in _with_parts(self._lr_schedulers):
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]

    @property
    def _optimizers(self) -> list[Any]:
        return _listed(self.optimizer)

    @property
    def _lr_schedulers(self) -> list[Any]:
        return _listed(self.lr_scheduler)

    def update_learning_rate(self, metric: float) -> None:
        """Let the schedulers take their step; those on a plateau look at the metric."""
        for scheduler in self._lr_schedulers:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(metric)
            else:
                scheduler.step()

    # --- state -------------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_weights(self, state: Mapping[str, Any]) -> None:
        load_state(self.model, state, is_resume=True)

    def optimizer_state(self) -> list[Any]:
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def rest_of_state(self) -> dict[str, Any]:
        """Return what an exact continuation needs beside weights and optimizers."""
        kind, keys, *position = np.random.get_state()  # noqa: NPY002  # the user's loaders may use it
        version, words, spare = random.getstate()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {
            "lr_schedulers": [scheduler.state_dict() for scheduler in self._lr_schedulers],
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "numpy": [kind, np.asarray(keys).tolist(), *position],
            "python": [version, list(words), spare],
        }

    def load_rest(self, state: Mapping[str, Any], optimizers: list[Any]) -> None:
        """Take back ``optimizer_state`` and ``rest_of_state``."""
        saved = len(optimizers), len(state["lr_schedulers"])
        now = len(self._optimizers), len(self._lr_schedulers)
        if saved != now:
            raise CheckpointError(
                f"The run was saved with {saved[0]} optimizers and {saved[1]} LR schedulers; "
                f"configure_optimizers_fn returned {now[0]} and {now[1]}. Use the function that the "
                "run began with."
            )
        for optimizer, its in zip(self._optimizers, optimizers, strict=True):
            optimizer.load_state_dict(its)
        for scheduler, its in zip(self._lr_schedulers, state["lr_schedulers"], strict=True):
            scheduler.load_state_dict(its)
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
            torch.cuda.set_rng_state_all(state["cuda"])
        kind, keys, *position = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *position))  # noqa: NPY002  # as above
        version, words, spare = state["python"]
        random.setstate((version, tuple(words), spare))

    # --- files and processes -----------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        return is_main_process()

    def agreed(self, value: Any) -> Any:
        """Return what the first process has."""
        return from_main(value)

    def write(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a file, whole or not at all; only the first process does. All wait for it."""
        if self.is_main:
            with replacing(path) as temporary:
                torch.save(dict(state), temporary)
        if is_distributed():
            dist.barrier()

    def read(self, path: Path) -> dict[str, Any]:
        """Return what ``write`` wrote, on the CPU. Raises CheckpointError for anything else."""
        try:
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}. Expected a file that an accuracy-aware run wrote. If "
                "an optimizer or LR scheduler keeps objects of its own class in its state, pass the "
                "class to torch.serialization.add_safe_globals; or start anew with resume=False."
            ) from error
        return found

    def writer(self, given: Any) -> Any:
        """Return a user's TensorBoard writer."""
        return given

    def summary_writer(self, folder: Path) -> Any:
        """Return a TensorBoard writer, None where that package is absent."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(folder))


def _listed(found: Any) -> list[Any]:
    if found is None:
        return []
    return list(found) if isinstance(found, list | tuple) else [found]


def _with_parts(schedulers: list[Any]) -> list[Any]:
    """Return schedulers and those that they are made of."""
    return [
        part for own in schedulers for part in (own, *_with_parts(getattr(own, "_schedulers", [])))
    ]
