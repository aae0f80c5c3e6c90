# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation as an Algorithm: find the teacher, check that it fits, have it teach."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nncf.algorithms.knowledge_distillation.controller import KnowledgeDistillationController
from nncf.algorithms.knowledge_distillation.features import WHERE, Tap, check_shapes, plan_taps
from nncf.algorithms.knowledge_distillation.options import KnowledgeDistillationOptions
from nncf.compression.algorithm import Algorithm, Compressed, Given
from nncf.compression.layout import Layout
from nncf.config.structures import TeacherArgs
from nncf.errors import CheckpointError, ModelError
from nncf.graph.graph import Graph

_LOGGER = logging.getLogger("nncf")

LOW_BITS = 4
"""At so few bits or fewer, long gradients of a high temperature do harm."""


@dataclass(frozen=True)
class Prepared:
    """The teacher, and the names of its features by those of the model."""

    teacher: Any
    features: Mapping[str, str]


class KnowledgeDistillationAlgorithm(Algorithm):
    """Learning from the model as it was, or from a larger one (Hinton et al. 2015)."""

    name: ClassVar[str] = "knowledge_distillation"
    options: KnowledgeDistillationOptions

    def plan(self, graph: Graph) -> Layout:
        return plan_taps(graph, [feature.scope for feature in self.options.features])

    @staticmethod
    def op_from_state(state: Mapping[str, Any]) -> Tap:
        return Tap(**state)

    def prepare(self, given: Given) -> Prepared:
        registered = None
        if given.config.has_extra_struct(TeacherArgs):
            registered = given.config.get_extra_struct(TeacherArgs).model
        options = self.options
        if [insert.op.scope for insert in given.layout] != [f.scope for f in options.features]:  # type: ignore[attr-defined]  # all ops here are Taps
            raise CheckpointError(
                "compression_state was saved with other features of knowledge_distillation than "
                "the configuration has. Use the configuration of the saved run."
            )
        teacher = given.backend.make_teacher(given.model, registered)
        pairs = given.backend.example_pairs(given.model, teacher, given.forward)
        self._check_outputs(given.home, pairs)
        features = self._install_taps(given, teacher)
        if options.cache_teacher_outputs:
            teacher.remember(options.cache_limit_mib)
        return Prepared(teacher, features)

    def _check_outputs(self, home: Any, pairs: Any) -> None:
        """Raise ModelError where no output suits the type of loss."""
        judge = self._judge(home, None)
        if pairs is not None and not any(judge.suits(ours) for _, ours, _ in pairs):
            shapes = ", ".join(str(tuple(ours.shape)) for _, ours, _ in pairs)
            expected = "[batch, classes]" if self.options.type == "softmax" else "two axes or more"
            raise ModelError(
                f'knowledge_distillation.type = "{self.options.type}" needs an output of '
                f"{expected}; the model's outputs are {shapes}. "
                + ('Write "type": "mse".' if self.options.type == "softmax" else "Return others.")
            )

    def _install_taps(self, given: Given, teacher: Any) -> dict[str, str]:
        """Have the teacher note its features too; return their names by the model's."""
        features = self.options.features
        if not features:
            return {}
        captured = teacher.look(given.forward)
        scopes = [feature.teacher_scope or feature.scope for feature in features]
        layout = plan_taps(captured.graph, scopes, f"{WHERE} (teacher)")
        pairs = list(zip(given.layout, layout, strict=True))
        check_shapes(given.graph, captured.graph, pairs)
        teacher.observe(layout, captured, given.home.make_op)
        return {ours.name: theirs.name for ours, theirs in pairs}

    def _judge(self, home: Any, limit: float | None, names: Iterable[str] = ()) -> Any:
        options = self.options
        kinds = {
            name: (feature.type, feature.scale)
            for name, feature in zip(names, options.features, strict=False)
        }
        return home.Judge(options.type, options.scale, options.temperature, limit, kinds)

    def control(self, compressed: Compressed) -> KnowledgeDistillationController:
        prepared: Prepared = compressed.prepared
        limit = self._gradient_limit(compressed)
        judge = self._judge(compressed.home, limit, prepared.features)
        teaching = compressed.backend.teach(
            compressed.model, prepared.teacher, judge, prepared.features
        )
        return KnowledgeDistillationController(teaching)

    def _gradient_limit(self, compressed: Compressed) -> float | None:
        """Return the limit that the configuration gives, or that few bits advise."""
        options = self.options
        bits = compressed.backend.fewest_bits(compressed.model)
        if options.type == "mse" or bits is None or bits > LOW_BITS:
            return options.gradient_limit
        if options.scale >= 1:
            _LOGGER.warning(
                "knowledge_distillation: a part of the model keeps %d bits, and scale is %g. "
                "Beside a task loss in full this acts as a higher learning rate, which few bits "
                'do not stand. Write "scale": 0.7 and train with 0.3 * task_loss + '
                "controller.loss(), or lower the learning rate.",
                bits,
                options.scale,
            )
        if options.gradient_limit is not None or options.temperature <= 1:
            return options.gradient_limit
        _LOGGER.warning(
            "knowledge_distillation: at temperature %g gradients are kept as short as at "
            "temperature 1, since a part of the model keeps %d bits, for which a high temperature "
            'can still do harm. Write "temperature": 1, or set another gradient_limit.',
            options.temperature,
            bits,
        )
        return 1.0
