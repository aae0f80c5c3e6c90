# SPDX-License-Identifier: Apache-2.0
"""Options of magnitude sparsity."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, WithJsonSchema

from nncf.algorithms.batchnorm_adaptation.options import BatchnormAdaptationOptions
from nncf.algorithms.sparsity_options import SPARSITY_ROLE, ScopeOptions, SparsitySchedule
from nncf.option_messages import Problem
from nncf.options import Level, Options, Scope, option, wrong


def _check_pattern(text: str) -> str:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not 0 < int(found[1]) < int(found[2]):
        raise wrong(
            f'"{text}" is no pattern; expected "N:M" with 0 < N < M, such as "2:4": of each 4 '
            "neighbours 2 are kept."
        )
    return text


Pattern = Annotated[
    str,
    AfterValidator(_check_pattern),
    WithJsonSchema({"type": "string", "pattern": r"^\d+:\d+$", "words": 'a text such as "2:4"'}),
]
"""``N:M``: of each M neighbours along the input channels N are kept."""


def numbers(pattern: str) -> tuple[int, int]:
    """Return the N and the M of a pattern ``"N:M"``."""
    kept, group = pattern.split(":")
    return int(kept), int(group)


class MagnitudeSparsityInitializer(Options):
    """What happens when a sparsity level has been set."""

    batchnorm_adaptation: BatchnormAdaptationOptions = option(
        BatchnormAdaptationOptions(),
        "Refresh batch norm statistics when the training script asks for it.",
    )


class MagnitudeSparsitySchedule(SparsitySchedule):
    """How the level grows, and which weights go first."""

    schedule: Literal["polynomial", "exponential", "multistep"] = option(
        "polynomial", "How the level grows."
    )
    weight_importance: Literal["normed_abs", "abs"] = option(
        "normed_abs",
        'What makes a weight important: its size relative to its layer ("normed_abs") or as it '
        'is ("abs").',
    )
    pattern: Pattern | None = option(
        None,
        '"N:M" keeps the N largest of each M neighbouring input channels ("2:4", "4:8"), as '
        "sparse kernels need it. The target is then 1 − N/M, and sparsity_target need not be "
        "given.",
    )

    def final_level(self) -> float:
        written = self.schedule == "multistep" or self.has("sparsity_target")
        return super().final_level() if self.pattern is None or written else self.pattern_level

    @property
    def pattern_level(self) -> float:
        """The level that the pattern ends at: 1 − N/M, or 1 without a pattern."""
        if self.pattern is None:
            return 1.0
        kept, group = numbers(self.pattern)
        return (group - kept) / group

    def rules(self) -> Iterator[Problem]:
        yield from super().rules()
        if self.pattern is None:
            return
        key = "multistep_sparsity_levels" if self.schedule == "multistep" else "sparsity_target"
        if abs(self.final_level() - self.pattern_level) > 1e-9:
            yield Problem(
                (key,),
                f" ends at {self.final_level():g}, but the pattern {self.pattern} at "
                f"{self.pattern_level:g}. Expected the same level, or leave the pattern out.",
            )
        elif (
            self.schedule == "multistep"
            and max(self.multistep_sparsity_levels) > self.pattern_level
        ):
            yield Problem(
                (key,),
                f" goes to {max(self.multistep_sparsity_levels):g}, more than the "
                f"{self.pattern_level:g} that the pattern {self.pattern} drops.",
            )


class LevelOverride(Options):
    """The levels of particular operations, in place of the schedule's."""

    sparsity_init: Level | None = option(
        None, "Level at the start. Unset: that of all layers, but at most the target."
    )
    sparsity_target: Level = option(..., "Level at the end of the schedule.")


class MagnitudeSparsityOptions(ScopeOptions):
    """Settings of ``{"algorithm": "magnitude_sparsity"}``."""

    adaptive: ClassVar[bool] = True
    role: ClassVar[str] = SPARSITY_ROLE

    algorithm: Literal["magnitude_sparsity"] = option("magnitude_sparsity", "Names this algorithm.")
    sparsity_init: Level = option(0.0, "Level at the start of training.")
    initializer: MagnitudeSparsityInitializer = option(
        MagnitudeSparsityInitializer(), "What happens when a level has been set."
    )
    params: MagnitudeSparsitySchedule = option(
        MagnitudeSparsitySchedule(), "How the level grows over the epochs."
    )
    scope_overrides: dict[Scope, LevelOverride] = option(
        {},
        "Scope → levels of these layers, each on its own, along the same curve as the others. "
        "Where several scopes match, the one written last wins.",
    )

    def rules(self) -> Iterator[Problem]:
        params = self.params
        if self.sparsity_init > params.pattern_level:
            yield Problem(
                ("sparsity_init",),
                f" = {self.sparsity_init:g} is more than the pattern {params.pattern} drops: "
                f"expected at most {params.pattern_level:g}.",
            )
        if not self.scope_overrides:
            return
        if params.pattern is not None:
            yield Problem(
                ("scope_overrides",),
                f": with the pattern {params.pattern} all layers end at {params.pattern_level:g}. "
                'Put layers that are to stay dense into "ignored_scopes".',
            )
        if params.sparsity_level_setting_mode == "local":
            yield Problem(
                ("scope_overrides",),
                ': with sparsity_level_setting_mode "local" there is no schedule to follow. Set '
                "the levels with set_sparsity_level(level, scope), or use the mode "
                '"global".',
            )
