# SPDX-License-Identifier: Apache-2.0
"""Teaching: at each training forward of a model its teacher answers too, and a loss is kept.

``Teaching`` is a part of the ``compression`` submodule that has hooks on the user's model: before
a training forward the teacher answers, afterwards a function of the algorithm judges both
answers. Nothing happens in evaluation mode and without gradients.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nncf.errors import CheckpointError, ModelError
from nncf.torch import hooks
from nncf.torch.answers import Answer
from nncf.torch.intercept import compression_of
from nncf.torch.structure import tensors_in
from nncf.torch.teacher import Teacher, answer_of, expect, outputs_of, taken, taps_of

_LOGGER = logging.getLogger("nncf")

NAME = "teaching"
_MANY = 256  # forwards without a call of loss(), from which on something is likely wrong

Pair = tuple[str, torch.Tensor, torch.Tensor]
"""A path, the student's tensor and the teacher's."""


class BeforeForward:
    """Forward pre-hook: the teacher answers first, while memory is free of activations."""

    def __init__(self, source: Teaching) -> None:
        self.source = source

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        _unseen(_own(module, self.source).before, module, args, kwargs)


class AfterForward:
    """Forward hook: both answers are judged."""

    def __init__(self, source: Teaching) -> None:
        self.source = source

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        _unseen(_own(module, self.source).after, module, output)


def _own(module: nn.Module, source: Teaching) -> Teaching:
    """Return the Teaching of a replica that DataParallel made, or else ``source``."""
    compression = compression_of(module) if getattr(module, "_is_replica", False) else None
    return source if compression is None else getattr(compression, NAME)


def _unseen(function: Callable[..., None], *args: Any) -> None:
    """Call a function whose operations are not those of the model.

    Recomputation of a checkpoint runs the model's hooks where its mode is active already.
    """
    mode = hooks.active_mode()
    if mode is None:
        function(*args)
        return
    mode.gaps.append("closed")
    try:
        function(*args)
    finally:
        mode.gaps.pop()


class Losses:
    """The losses that nobody has collected yet, of a model and of its replicas together.

    A chain rather than a list: a compiled forward would be compiled anew for each length of one.
    """

    def __init__(self) -> None:
        self._chain: Any = None
        self._count = 0
        self._lock = threading.Lock()
        self.last: tuple[torch.Tensor, Pair | None] | None = None

    def keep(self, loss: torch.Tensor, scores: Pair | None) -> None:
        """Keep the loss of one forward, and the scores that it compared."""
        if torch.compiler.is_compiling():
            self._add(loss, scores)
            return
        with self._lock:
            self._add(loss, scores)
            self._count += 1
        if self._count % _MANY == 0:
            _LOGGER.warning(
                "The distillation losses of %d forwards in training mode wait for controller."
                "loss(), and hold memory. Add it to the training loss; run model.eval() or "
                "torch.no_grad() around forwards that do not train.",
                self._count,
            )

    def _add(self, loss: torch.Tensor, scores: Pair | None) -> None:
        self._chain = (loss, self._chain)
        self.last = (loss.detach(), scores)

    def take(self) -> list[torch.Tensor]:
        """Return all losses, oldest first and by device, and forget them."""
        found = []
        chain, self._chain, self._count = self._chain, None, 0
        while chain is not None:
            loss, chain = chain
            found.append(loss)
        # Replicas end in any order; a sum that depended on it could not be repeated.
        found.reverse()
        return sorted(found, key=lambda loss: loss.device.index or 0)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: Any) -> None:
        self.__init__()  # type: ignore[misc]  # a copy starts without losses


class Teaching(nn.Module):
    """The teacher of a model, and the losses of the forwards that nobody has collected yet.

    ``judge(outputs, features)`` returns the loss of one forward from pairs, None for none. A copy
    and a pickle of the model leave the teacher behind: they compute the same and are not taught,
    since nobody holds a controller of them.
    """

    def __init__(
        self,
        teacher: Teacher,
        judge: Callable[[list[Pair], list[Pair]], torch.Tensor | None],
        features: dict[str, str],
    ) -> None:
        super().__init__()
        self.teacher: Teacher | None = teacher
        self.judge = judge
        self.features = features
        self.refusal = ""
        self.losses = Losses()
        self._answer: Answer | None = None
        self._blind = False

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Let the teacher answer what the model is about to be asked."""
        if not module.training or self.teacher is None:
            return
        if not torch.is_grad_enabled():
            self._blind = True
            return
        if self.refusal:
            raise CheckpointError(self.refusal)
        first = next(module.parameters(), None)
        if first is None:  # a replica of DataParallel has none
            first = next(tensors_in((args, kwargs)), None)
        expect(taps_of(module), True)
        device = None if first is None else first.device
        self._answer = self.teacher.answer(args, kwargs, device)

    def after(self, module: nn.Module, output: Any) -> None:
        """Judge the model's answer and keep the loss."""
        teacher, self._answer = self._answer, None
        if teacher is None:
            return
        student = answer_of(output, taken(taps_of(module)))
        outputs = output_pairs(student, teacher)
        features = feature_pairs(student, teacher, self.features)
        loss = self.judge(outputs, features)
        if loss is None or not self._is_first_pass():
            return
        self.losses.keep(loss, _scores(outputs))

    def collect(self) -> torch.Tensor | None:
        """Return the mean loss of the forwards since the last call, None without any."""
        losses = self.losses.take()
        if len(losses) < 2:
            return losses[0] if losses else None
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()

    def last_seen(self) -> tuple[float | None, float | None]:
        """Return the loss of the last training forward, and the share of equal classes."""
        if self.losses.last is None:
            return None, None
        loss, pair = self.losses.last
        if pair is None:
            return float(loss), None
        _, one, other = pair
        return float(loss), float((one.argmax(1) == other.argmax(1)).float().mean())

    def _is_first_pass(self) -> bool:
        """Tell whether this is no recomputation of gradient checkpointing.

        Raises ModelError when the first pass was without gradients: nothing was learned from it.
        """
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self._blind = False
            return True
        if self._blind:
            raise ModelError(
                "The whole model is run by reentrant gradient checkpointing, whose outputs "
                "distillation cannot see. Write checkpoint(model, …, use_reentrant=False), or "
                "checkpoint parts of the model."
            )
        return False

    def _apply(self, fn: Any, recurse: bool = True) -> Teaching:
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher.follow(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "teacher": None, "_answer": None}

    def extra_repr(self) -> str:
        return "no teacher (a copy)" if self.teacher is None else repr(self.teacher)


def teach(
    model: nn.Module, teacher: Teacher, judge: Callable[..., Any], features: dict[str, str]
) -> Teaching:
    """Have a compressed model taught from now on, and return what keeps the losses.

    ``features`` maps the names of the model's ops that note features to the teacher's.
    """
    compression = compression_of(model)
    assert compression is not None
    teaching = Teaching(teacher, judge, features)
    compression.add_module(NAME, teaching)
    model.register_forward_pre_hook(BeforeForward(teaching), prepend=True, with_kwargs=True)
    model.register_forward_hook(AfterForward(teaching))
    return teaching


def fewest_bits(model: nn.Module) -> int | None:
    """Return the smallest number of bits that an op of a compressed model keeps, None for none."""
    compression = compression_of(model)
    assert compression is not None
    found = [getattr(insert.op, "bits", None) for insert in compression.layout]
    return min((bits for bits in found if bits is not None), default=None)


def output_pairs(student: Answer, teacher: Answer) -> list[Pair]:
    """Return the outputs that both have, by path.

    A model that returns a bare tensor is compared with the first one of a model that returns
    several (some add auxiliary outputs in training only). Raises ModelError where nothing fits.
    """
    ours, theirs = student.outputs, teacher.outputs
    common = [path for path in ours if path in theirs]
    pairs = [(path, ours[path], theirs[path]) for path in common]
    if not common and ours and theirs and ("" in ours or "" in theirs):
        path = next(iter(ours))
        pairs = [(path, ours[path], next(iter(theirs.values())))]
    if not pairs:
        raise ModelError(
            f"The teacher's outputs do not match the model's: the teacher returns "
            f"{_described(theirs)}, the model {_described(ours)}. Expected floating point tensors "
            "under the same keys or at the same places: wrap the teacher so that it returns what "
            "the model returns."
        )
    for path, one, other in pairs:
        if one.shape != other.shape:
            raise ModelError(
                f"The teacher's outputs do not match the model's: {path or 'the output'} has the "
                f"shape {tuple(other.shape)} at the teacher and {tuple(one.shape)} at the model. "
                "Register a teacher with as many classes as the model has."
            )
    return pairs


def feature_pairs(student: Answer, teacher: Answer, features: dict[str, str]) -> list[Pair]:
    """Return the features that both passed in this forward."""
    found = []
    for ours, theirs in features.items():
        if ours in student.features and theirs in teacher.features:
            found.append((ours, student.features[ours], teacher.features[theirs]))
    return found


def _described(outputs: dict[str, torch.Tensor]) -> str:
    parts = [f"{path or 'a tensor'} {tuple(tensor.shape)}" for path, tensor in outputs.items()]
    return ", ".join(parts) or "no floating point tensor"


def _scores(pairs: list[Pair]) -> Pair | None:
    """Return the first pair that may be scores of classes, without its history."""
    for path, one, other in pairs:
        if one.dim() == 2:
            return path, one.detach(), other
    return None


def example_pairs(
    model: nn.Module, teacher: Teacher, forward: Callable[[nn.Module], Any]
) -> list[Pair] | None:
    """Return the outputs of model and teacher for the example inputs, None where there are none.

    Raises ModelError when the teacher cannot run on them or its outputs do not match.
    """
    theirs = teacher.try_out(forward)
    ours = outputs_of(model, forward)
    return None if ours is None or theirs is None else output_pairs(ours, theirs)
