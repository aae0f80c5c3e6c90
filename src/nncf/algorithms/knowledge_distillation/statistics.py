# SPDX-License-Identifier: Apache-2.0
"""What distillation shows of itself."""

from __future__ import annotations

from dataclasses import dataclass

from nncf.compression.statistics import grid


@dataclass(frozen=True)
class KnowledgeDistillationStatistics:
    """The teacher, and the last training forward: its loss, and how often both chose one class.

    ``agreement`` is a share of the samples, None where no output has scores of classes;
    ``cached`` says what the cache of answers holds, empty without one.
    """

    teacher: str
    loss: float | None
    agreement: float | None
    cached: str = ""

    def to_str(self) -> str:
        loss = "no training forward yet" if self.loss is None else f"{self.loss:.4f}"
        rows = [["Teacher", self.teacher], ["Loss of the last forward", loss]]
        if self.agreement is not None:
            rows.append(["Same class as the teacher", f"{100 * self.agreement:.2f} %"])
        if self.cached:
            rows.append(["Cached answers", self.cached])
        table = grid(["Statistic's name", "Value"], rows)
        return f"Statistics of the knowledge distillation algorithm:\n{table}"

    def tensorboard(self) -> dict[str, float]:
        found = {"loss": self.loss, "teacher_agreement": self.agreement}
        return {
            f"knowledge_distillation/{name}": value
            for name, value in found.items()
            if value is not None
        }

    def __repr__(self) -> str:
        return self.to_str()
