# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: the model before compression teaches the one after.

The idea
    The original model runs on the same inputs, and a loss term asks the compressed model to
    give the same outputs. It carries more than the labels do: how likely each wrong class is.

The formula
    ``mse``: ``scale · mean (teacher − student)²``. ``softmax``, on rank-2 outputs:
    ``−scale · T² · mean_batch Σ_c softmax(teacher / T)_c · log_softmax(student / T)_c``.

Paper
    G. Hinton, O. Vinyals, J. Dean, *Distilling the Knowledge in a Neural Network*, 2015
    (arXiv:1503.02531).

When to use it
    Beside any algorithm that costs accuracy; it takes one more forward pass per step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from nncf.option_messages import Problem
from nncf.options import Options, PositiveNumber, option

TORCH = ("torch",)


class KnowledgeDistillationOptions(Options):
    """Settings of ``{"algorithm": "knowledge_distillation"}``."""

    algorithm: Literal["knowledge_distillation"] = option(
        "knowledge_distillation", "Names this algorithm.", backends=TORCH
    )
    type: Literal["mse", "softmax"] = option(
        ...,
        '"mse" compares outputs as they are, "softmax" the class probabilities.',
        backends=TORCH,
    )
    scale: PositiveNumber = option(1.0, "Weight of this loss.", backends=TORCH)
    temperature: PositiveNumber = option(
        1.0, "Above 1 it softens the probabilities (softmax only).", backends=TORCH
    )

    def rules(self) -> Iterator[Problem]:
        if self.type == "mse" and self.has("temperature"):
            yield Problem(
                ("temperature",),
                ' is given, but type is "mse", which has none. Remove it, or write '
                '"type": "softmax".',
            )
