# SPDX-License-Identifier: Apache-2.0
"""A teacher's answers, and a memory of them for samples that come again.

A sample is known by a digest of its bytes in all input tensors. Answers are kept in main memory
as the teacher gave them, and a batch is answered from there when all its samples are known;
otherwise the teacher runs on the whole batch, as it would without the memory.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from nncf.errors import ModelError
from nncf.torch.structure import map_tensors, tensors_in

_LOGGER = logging.getLogger("nncf")


@dataclass(frozen=True)
class Answer:
    """What a model says to a batch: its floating point outputs by path, and noted features."""

    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    features: dict[str, torch.Tensor] = field(default_factory=dict)


class AnswerCache:
    """Answers by sample, up to a limit of memory.

    When the limit is reached, or an epoch has passed in which no sample came again, the cache
    cannot help: it says so once, is emptied and stays so.
    """

    def __init__(self, limit_mib: float) -> None:
        self.limit_mib = limit_mib
        self.hits = 0
        self.misses = 0
        self.bytes = 0
        self.given_up = ""
        # Not as a decorator: at import it would load the compiler, which patches torch.
        self.answer = torch.compiler.disable(
            self._answer, reason="the teacher's answers are looked up by the bytes of the inputs"
        )
        """``answer(args, kwargs, ask)``: the answer to a batch, from memory or by ``ask()``."""
        self._rows: dict[bytes, Answer] = {}
        self._epoch: list[int] = []  # hits when each epoch began
        self._lock = threading.Lock()

    def __str__(self) -> str:
        if self.given_up:
            return f"none: {self.given_up}"
        size = self.bytes / 2**20
        return f"{len(self._rows)} samples, {size:.1f} MiB, {self.hits} of {self.hits + self.misses} found"

    def _answer(self, args: Any, kwargs: Any, ask: Callable[[], Answer]) -> Answer:
        if self.given_up:
            return ask()
        inputs = list(tensors_in((args, kwargs)))
        if not inputs or not inputs[0].dim():
            raise ModelError(
                "cache_teacher_outputs: the inputs of the model hold no tensor with a batch axis. "
                'Set "cache_teacher_outputs": false.'
            )
        keys = _keys(args, kwargs, inputs)
        with self._lock:
            rows = [self._rows.get(key) for key in keys]
        known = [row for row in rows if row is not None]
        self.hits += len(known)
        self.misses += len(rows) - len(known)
        if len(known) == len(rows):
            return _together(known, inputs[0].device)
        found = ask()
        self._store(keys, found)
        return found

    def begin_epoch(self) -> None:
        """Give up when the epoch that ends, not the first one, found nothing."""
        asked = bool(self.hits + self.misses)
        if asked and len(self._epoch) > 1 and self._epoch[-1] == self.hits:
            self._give_up(
                "no sample of the last epoch had been seen before. Augmented samples differ each "
                "time"
            )
        self._epoch = [*self._epoch, self.hits] if asked else [self.hits]

    def _store(self, keys: list[bytes], found: Answer) -> None:
        kept = _rows(found, len(keys))
        size = sum(
            t.nbytes for row in kept for t in (*row.outputs.values(), *row.features.values())
        )
        with self._lock:
            fresh = dict(zip(keys, kept, strict=True))
            size = size * sum(key not in self._rows for key in fresh) // max(len(keys), 1)
            if self.bytes + size <= self.limit_mib * 2**20:
                self.bytes += size
                self._rows.update((k, row) for k, row in fresh.items() if k not in self._rows)
                return
        self._give_up(
            f"the limit of {self.limit_mib:g} MiB was reached after {len(self._rows)} samples, "
            "and a part of the data is of no use. Raise cache_limit_mib if there is memory"
        )

    def clear(self) -> None:
        """Forget all answers."""
        with self._lock:
            self._rows.clear()
            self.bytes = 0

    def _give_up(self, reason: str) -> None:
        self.clear()
        self.given_up = reason
        _LOGGER.warning(
            "cache_teacher_outputs: %s. The teacher runs at every step from now on.", reason
        )


def _keys(args: Any, kwargs: Any, inputs: list[torch.Tensor]) -> list[bytes]:
    """Return a digest for each sample of the batch.

    Tensors as long as the first one hold a row for each sample; the rest concerns all of them.
    """
    count = len(inputs[0])
    common = hashlib.blake2b(digest_size=16)
    common.update(repr(map_tensors((args, kwargs), lambda t: (t.dtype, t.shape[1:]))).encode())
    common.update(repr(torch.is_autocast_enabled(inputs[0].device.type)).encode())
    per_sample = []
    for tensor in inputs:
        data = tensor.detach().cpu().contiguous()
        if data.dim() and len(data) == count:
            per_sample.append(data.reshape(count, -1))
        else:
            common.update(_bytes(data))
    keys = []
    for index in range(count):
        digest = common.copy()
        for data in per_sample:
            digest.update(_bytes(data[index]))
        keys.append(digest.digest())
    return keys


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _rows(answer: Answer, count: int) -> list[Answer]:
    """Cut an answer into those of its samples, copied into main memory."""
    tensors = {**answer.outputs, **answer.features}
    for name, tensor in tensors.items():
        if not tensor.dim() or len(tensor) != count:
            raise ModelError(
                f"cache_teacher_outputs: {name or 'the output'} of the teacher has the shape "
                f"{tuple(tensor.shape)} for a batch of {count}. Expected one row for each sample: "
                'set "cache_teacher_outputs": false.'
            )
    outputs = {name: tensor.detach().cpu() for name, tensor in answer.outputs.items()}
    features = {name: tensor.detach().cpu() for name, tensor in answer.features.items()}
    return [
        Answer(
            {name: tensor[index].clone() for name, tensor in outputs.items()},
            {name: tensor[index].clone() for name, tensor in features.items()},
        )
        for index in range(count)
    ]


def _together(rows: list[Answer], device: torch.device) -> Answer:
    def joined(kind: str) -> dict[str, torch.Tensor]:
        first = getattr(rows[0], kind)
        return {
            name: torch.stack([getattr(row, kind)[name] for row in rows]).to(device)
            for name in first
        }

    return Answer(joined("outputs"), joined("features"))
