# SPDX-License-Identifier: Apache-2.0
"""Options of knowledge distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from nncf.option_messages import Problem
from nncf.options import Flag, Options, PositiveNumber, Scope, option

TORCH = ("torch",)


class FeatureOptions(Options):
    """One activation in which the model is to resemble its teacher."""

    scope: Scope = option(
        ...,
        "Operation of the model; of several that match, the last one to run. A layer or a block "
        "stands for what it computes last.",
        backends=TORCH,
    )
    teacher_scope: Scope | None = option(
        None, "Operation of the teacher; unset: the same scope.", backends=TORCH
    )
    type: Literal["normalized_mse", "mse"] = option(
        "normalized_mse",
        '"mse" compares activations as they are, "normalized_mse" relative to the mean square of '
        "the teacher's, so that one scale suits all layers.",
        backends=TORCH,
    )
    scale: PositiveNumber = option(1.0, "Weight of this term.", backends=TORCH)


class _OrText:
    """Says in the schema that a string may stand in the place of what is annotated."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}


Feature = Annotated[
    FeatureOptions,
    BeforeValidator(lambda value: {"scope": value} if isinstance(value, str) else value),
    _OrText(),
]
"""An object, or a scope alone."""

Features = Annotated[
    tuple[Feature, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    _OrText(),
]


class KnowledgeDistillationOptions(Options):
    """Settings of ``{"algorithm": "knowledge_distillation"}``."""

    algorithm: Literal["knowledge_distillation"] = option(
        "knowledge_distillation", "Names this algorithm."
    )
    type: Literal["mse", "softmax"] = option(
        ...,
        '"mse" compares outputs as they are, "softmax" the class probabilities.',
    )
    scale: PositiveNumber = option(1.0, "Weight of this loss.")
    temperature: PositiveNumber = option(
        1.0, "Above 1 it softens the probabilities (softmax only)."
    )
    gradient_limit: PositiveNumber | None = option(
        None,
        "Longest gradient by the scores of a batch, as a multiple of the one at temperature 1 "
        "(softmax only). Unset: 1 where a part of the model keeps 4 bits or fewer, otherwise none.",
    )
    features: Features = option(
        (),
        "Activations to compare beside the outputs: scopes, or objects with `scope`.",
        backends=TORCH,
    )
    cache_teacher_outputs: Flag = option(
        False,
        "Keep the teacher's answers in main memory and take them from there when a sample comes "
        "again. For data without augmentation.",
        backends=TORCH,
    )
    cache_limit_mib: PositiveNumber = option(
        1024.0, "Memory for these answers, in MiB.", backends=TORCH
    )

    def rules(self) -> Iterator[Problem]:
        if self.type == "softmax":
            return
        for key in self.has("temperature", "gradient_limit"):
            yield Problem(
                (key,),
                ' is given, but type is "mse", which has none. Remove it, or write '
                '"type": "softmax".',
            )

    def remarks(self) -> Iterator[Problem]:
        if not self.cache_teacher_outputs:
            yield from self.no_effect(("cache_limit_mib",), '"cache_teacher_outputs": true')
