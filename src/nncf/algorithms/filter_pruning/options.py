# SPDX-License-Identifier: Apache-2.0
"""Options of filter pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from nncf.algorithms.batchnorm_adaptation.options import BatchnormAdaptationOptions
from nncf.algorithms.sparsity_options import TORCH, ScopeOptions
from nncf.option_messages import Part, Problem
from nncf.options import Count, Flag, Former, Level, Options, Positive, Text, Whole, option

# Ranking all filters of a network against each other makes sense only over all its layers.
_LEARNED_RANKING_DEFAULTS = {
    "prune_first_conv": True,
    "prune_downsample_convs": True,
    "all_weights": True,
}
_LEARNED_RANKING_KEYS = ("legr_params", "save_ranking_coeffs_path", "load_ranking_coeffs_path")


class LegrOptions(Options):
    """The evolutionary search of the learned ranking."""

    generations: Positive = option(400, "Candidates that are tried.", backends=TORCH)
    train_steps: Positive = option(
        200, "Training steps before a candidate is judged.", backends=TORCH
    )
    max_pruning: Level | None = option(
        None, "Level at which candidates are judged; unset: the target level.", backends=TORCH
    )
    random_seed: Whole = option(42, "Seed of the search.", backends=TORCH)


class FilterPruningParams(Options):
    """The section ``params`` of filter pruning."""

    former: ClassVar[tuple[Former, ...]] = (
        Former("weight_importance", 'Write "filter_importance".', new="filter_importance"),
        Former(
            "prune_last_conv",
            "A layer whose filters are outputs of the model is never pruned; remove the key.",
        ),
        Former("zero_grad", "Pruned filters get no gradient; remove the key."),
    )

    schedule: Literal["exponential", "exponential_with_bias", "baseline"] = option(
        "exponential",
        'How the level grows: along one of two exponential curves, or at once ("baseline").',
    )
    pruning_target: Level = option(0.5, "Share of filters that are gone at the end.")
    pruning_flops_target: Level | None = option(
        None, "Share of operations (FLOPs) that are gone at the end, instead of a share of filters."
    )
    pruning_steps: Positive = option(100, "Epochs from the first level to the target.")
    num_init_steps: Count = option(0, "Epochs at the start without pruning.")
    filter_importance: Literal["L2", "L1", "geometric_median"] = option(
        "L2", "What makes a filter important."
    )
    all_weights: Flag = option(
        False,
        "Rank all filters of the network together (true) or in each group of layers. true with "
        "the learned ranking.",
    )
    prune_first_conv: Flag = option(
        False, "Whether first convolutions are pruned. true with the learned ranking."
    )
    prune_downsample_convs: Flag = option(
        False, "Whether convolutions with a stride are pruned. true with the learned ranking."
    )
    channel_multiple: Positive = option(
        8,
        "Every layer keeps a multiple of this number of channels, or all: runtimes compute so "
        "many at once.",
    )
    prune_batch_norms: Flag = option(
        True, "Whether the batch norm channels of pruned filters are zeroed too."
    )
    interlayer_ranking_type: Literal["unweighted_ranking", "learned_ranking"] = option(
        "unweighted_ranking",
        "How filters of different layers compare: by importance as it is, or corrected by a "
        "learned scale and shift for each layer (LeGR).",
        backends=TORCH,
    )
    legr_params: LegrOptions | None = option(
        None, "The search of the learned ranking.", backends=TORCH
    )
    save_ranking_coeffs_path: Text | None = option(
        None, "File to which the learned scales and shifts are written (JSON).", backends=TORCH
    )
    load_ranking_coeffs_path: Text | None = option(
        None, "File with scales and shifts learned earlier (JSON).", backends=TORCH
    )

    @classmethod
    def modernize(cls, section: dict[str, Any], path: tuple[Part, ...]) -> Iterator[Problem]:
        """Keep, in a section with keys up to release 2.0, the default schedule of its time."""
        is_early = any(old.key in section for old in cls.former)
        yield from super().modernize(section, path)
        if is_early and "schedule" not in section:
            section["schedule"] = "baseline"
            yield Problem(
                path,
                ' is written for a release whose default schedule was "baseline", which is used. '
                'Write "schedule": "baseline", or "exponential", today\'s default.',
            )

    @model_validator(mode="before")
    @classmethod
    def _learned_ranking_defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("interlayer_ranking_type") == "learned_ranking":
            return {**_LEARNED_RANKING_DEFAULTS, **data}
        return data

    def rules(self) -> Iterator[Problem]:
        if len(self.has("pruning_target", "pruning_flops_target")) == 2:
            yield Problem(
                ("pruning_flops_target",),
                " and pruning_target are both given: keep one of them, a share of operations or "
                "a share of filters.",
            )
        if self.interlayer_ranking_type == "learned_ranking" and not self.all_weights:
            yield Problem(
                ("all_weights",),
                " = false does not go with the learned ranking, which ranks all filters of the "
                'network together. Remove it, or write "interlayer_ranking_type": '
                '"unweighted_ranking".',
            )

    def remarks(self) -> Iterator[Problem]:
        if self.interlayer_ranking_type != "learned_ranking":
            learned = 'interlayer_ranking_type "learned_ranking"'
            yield from self.no_effect(_LEARNED_RANKING_KEYS, learned)
        if self.schedule == "baseline":
            yield from self.no_effect(("pruning_steps",), "another schedule than baseline")


class FilterPruningInitializer(Options):
    """The section ``initializer`` of filter pruning."""

    batchnorm_adaptation: BatchnormAdaptationOptions = option(
        BatchnormAdaptationOptions(),
        "Refresh batch norm statistics when the training script asks for it.",
    )


class FilterPruningOptions(ScopeOptions):
    """Settings of ``{"algorithm": "filter_pruning"}``."""

    adaptive: ClassVar[bool] = True

    algorithm: Literal["filter_pruning"] = option("filter_pruning", "Names this algorithm.")
    initializer: FilterPruningInitializer = option(
        FilterPruningInitializer(), "What happens when a level has been set."
    )
    pruning_init: Level = option(0.0, "Level at the start of training.")
    params: FilterPruningParams = option(
        FilterPruningParams(), "How much is pruned, when, and by which ranking."
    )
