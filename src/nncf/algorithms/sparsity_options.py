# SPDX-License-Identifier: Apache-2.0
"""Options that the sparsity algorithms share: scopes and schedules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from nncf.option_messages import Problem
from nncf.options import Count, Flag, Level, Options, Positive, PositiveNumber, Scopes, option

TORCH = ("torch",)

SPARSITY_ROLE = "decides which single weights are zero"

# Keys of a schedule's section that are read by one kind of schedule only.
_READ_BY = {
    "polynomial": ("update_per_optimizer_step", "steps_per_epoch", "power", "concave"),
    "multistep": ("multistep_steps", "multistep_sparsity_levels"),
    "adaptive": ("patience", "step", "eps"),
}


class ScopeOptions(Options):
    """Which operations an algorithm acts on."""

    ignored_scopes: Scopes = option((), "Operations that the algorithm leaves alone.")
    target_scopes: Scopes | None = option(
        None, "If given, the algorithm acts on these operations only."
    )
    validate_scopes: Flag = option(True, "Whether a scope that matches nothing is an error.")


class SparsitySchedule(Options):
    """How the sparsity level grows over the epochs. Subclasses say which kinds exist."""

    schedule: str = option("polynomial", "Kind of schedule.")
    sparsity_target: Level = option(0.5, "Share of weights that are zero at the end.")
    sparsity_target_epoch: Count = option(90, "Epoch at which the target is reached.")
    sparsity_freeze_epoch: Count = option(100, "Epoch from which the masks stay as they are.")
    update_per_optimizer_step: Flag = option(
        False, "Raise the level at every training step instead of every epoch (polynomial)."
    )
    steps_per_epoch: Positive | None = option(
        None, "Training steps in an epoch; unset: counted during the first epoch (polynomial)."
    )
    multistep_steps: tuple[Count, ...] = option(
        (90,), "Epochs at which the level jumps (multistep)."
    )
    multistep_sparsity_levels: tuple[Level, ...] = option(
        (0.1, 0.5),
        "Levels before, between and after the jumps; the last one is the target (multistep).",
    )
    power: PositiveNumber = option(0.9, "Exponent of the curve (polynomial).")
    concave: Flag = option(
        True, "Whether the level rises quickly first, true, or late (polynomial)."
    )
    sparsity_level_setting_mode: Literal["global", "local"] = option(
        "global",
        '"global": the schedule drives one level for all layers. "local": there is no schedule, '
        "and the training script sets the level of each layer.",
    )

    def final_level(self) -> float:
        """Return the level at the end of the schedule."""
        if self.schedule == "multistep":
            return self.multistep_sparsity_levels[-1]
        return self.sparsity_target

    def rules(self) -> Iterator[Problem]:
        if self.schedule != "multistep":
            return
        steps, levels = self.multistep_steps, self.multistep_sparsity_levels
        if len(levels) != len(steps) + 1:
            yield Problem(
                ("multistep_sparsity_levels",),
                f" has {len(levels)} entries: expected {len(steps) + 1}, one more than "
                f"multistep_steps, which has {len(steps)}.",
            )
        if any(a >= b for a, b in pairwise(steps)):
            yield Problem(("multistep_steps",), f" = {list(steps)}: expected rising epochs.")

    def remarks(self) -> Iterator[Problem]:
        if self.sparsity_level_setting_mode == "local":
            names = tuple(n for n in type(self).model_fields if n != "sparsity_level_setting_mode")
            names = tuple(name for name in names if name not in ("weight_importance", "pattern"))
            yield from self.no_effect(names, 'sparsity_level_setting_mode "global"')
            return
        for schedule, names in _READ_BY.items():
            if schedule != self.schedule:
                yield from self.no_effect(names, f'schedule "{schedule}"')
        if self.schedule == "multistep":
            names = ("sparsity_target", "sparsity_target_epoch")
            yield from self.no_effect(names, "another schedule than multistep")
        elif self.sparsity_freeze_epoch < self.sparsity_target_epoch:
            yield Problem(
                ("sparsity_freeze_epoch",),
                f" = {self.sparsity_freeze_epoch} comes before sparsity_target_epoch = "
                f"{self.sparsity_target_epoch}: the target will not be reached.",
            )
