# SPDX-License-Identifier: Apache-2.0
"""The losses of distillation, and the op that notes a feature, in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from nncf.compression.layout import Insert

Pair = tuple[str, torch.Tensor, torch.Tensor]

EPSILON = 1e-12


def make_op(insert: Insert) -> FeatureTap:  # noqa: ARG001  # all taps are alike
    """Return the running op of one Insert whose description is a Tap."""
    return FeatureTap()


class FeatureTap(nn.Module):
    """Passes a tensor unchanged; ``seen`` is a copy of the last one that passed while ``expecting``.

    A copy, since the model may go on in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expecting = False
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.expecting:
            self.seen = x.clone()
        return x

    def native(self) -> nn.Module:
        return nn.Identity()

    def describe(self) -> dict[str, object]:
        return {"algorithm": "knowledge_distillation"}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "seen": None}


@dataclass(frozen=True)
class Judge:
    """Turns the pairs of one forward into its loss.

    ``features`` are ``(type, scale)`` of each feature, by its name.
    """

    type: str
    scale: float
    temperature: float
    gradient_limit: float | None
    features: dict[str, tuple[str, float]]

    def __call__(self, outputs: Sequence[Pair], features: Sequence[Pair]) -> torch.Tensor | None:
        """Return the sum over all pairs that training can change, None if there is none."""
        terms = [self._output_loss(one, other) for _, one, other in outputs if self.takes(one)]
        for name, one, other in features:
            kind, scale = self.features[name]
            if one.requires_grad:
                loss = mse_loss if kind == "mse" else normalized_mse_loss
                terms.append(scale * loss(one, other))
        return sum(terms[1:], terms[0]) if terms else None

    def takes(self, student: torch.Tensor) -> bool:
        """Tell whether an output takes part: mse needs two axes or more, softmax just two."""
        return student.requires_grad and self.suits(student)

    def suits(self, student: torch.Tensor) -> bool:
        return student.dim() == 2 if self.type == "softmax" else student.dim() >= 2

    def _output_loss(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        if self.type == "mse":
            return self.scale * mse_loss(student, teacher)
        loss = softmax_loss(
            student,
            teacher,
            temperature=self.temperature,
            gradient_limit=self.gradient_limit,
        )
        return self.scale * loss


def mse_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return mean (teacher − student)², in float32 at least."""
    return functional.mse_loss(_wide(student), _wide(teacher))


def normalized_mse_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return mean (teacher − student)² / mean teacher²."""
    teacher = _wide(teacher)
    return functional.mse_loss(_wide(student), teacher) / teacher.square().mean().clamp_min(EPSILON)


def softmax_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 1.0,
    gradient_limit: float | None = None,
) -> torch.Tensor:
    """Return T² · cross-entropy of softmax(student / T) against softmax(teacher / T).

    Both are scores [batch, classes]. The gradient by the scores is
    T · (softmax(student / T) − softmax(teacher / T)) / batch, which is zero for no sample and
    grows with T. With ``gradient_limit`` it is shortened, for the whole batch alike, to that
    multiple of the length that it has at T = 1; the value of the loss stays as it is.
    """
    student, teacher = _wide(student), _wide(teacher)
    target = functional.softmax(teacher / temperature, dim=1)
    if gradient_limit is not None:
        with torch.no_grad():
            share = gradient_limit * _length(student, teacher, 1.0)
            share = (share / _length(student, teacher, temperature).clamp_min(EPSILON)).clamp_max(1)
        student = student.detach() + share * (student - student.detach())
    scores = functional.log_softmax(student / temperature, dim=1)
    return -(target * scores).sum(dim=1).mean() * temperature**2


def _length(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the length of the gradient by the scores of a batch, times its size."""
    one, other = (functional.softmax(x / temperature, dim=1) for x in (student, teacher))
    return temperature * (one - other).norm()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
