# SPDX-License-Identifier: Apache-2.0
"""Statistics of RB sparsity: levels reached and asked for, and how sure the masks are."""

from __future__ import annotations

from dataclasses import dataclass

from nncf.algorithms import sparsity_statistics
from nncf.algorithms.sparsity_statistics import SparsifiedModelStatistics, number
from nncf.compression.statistics import grid


@dataclass(frozen=True)
class RBSparsityStatistics:
    """What is zero, what level the loss aims at, and the mean probability of becoming zero.

    ``mean_sparse_prob`` is over all masked weights: ``1 − mean(sigmoid(logits))``.
    """

    model_statistics: SparsifiedModelStatistics
    target_sparsity_level: float
    mean_sparse_prob: float

    def to_str(self) -> str:
        rows = [
            [
                "A target level of the sparsity for the algorithm for the current epoch",
                number(self.target_sparsity_level),
            ],
            ["The probability that one weight will be zeroed", number(self.mean_sparse_prob)],
        ]
        return (
            self.model_statistics.to_str()
            + "\n\nStatistics of the RB sparsity algorithm:\n"
            + grid(["Statistic's name", "Value"], rows)
        )

    def tensorboard(self) -> dict[str, float]:
        further = {
            "target_sparsity_level": self.target_sparsity_level,
            "mean_sparse_prob": self.mean_sparse_prob,
        }
        return sparsity_statistics.tensorboard("rb_sparsity", self.model_statistics, further)
