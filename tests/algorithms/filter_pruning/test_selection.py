# SPDX-License-Identifier: Apache-2.0
"""Which filters stay: uniform and global levels, shares of filters and of FLOPs, multiples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nncf
from nncf.algorithms.filter_pruning.groups import Limit, PruningGroup
from nncf.algorithms.filter_pruning.selection import Selection, least
from tests.algorithms.filter_pruning.pruned import Residual, kept_filters, prune

MODES = [
    pytest.param({"pruning_target": 0.5}, id="uniform filters"),
    pytest.param({"pruning_target": 0.5, "all_weights": True}, id="global filters"),
    pytest.param({"pruning_flops_target": 0.5}, id="uniform flops"),
    pytest.param({"pruning_flops_target": 0.5, "all_weights": True}, id="global flops"),
]


def group(number: int, start: int, size: int) -> PruningGroup:
    return PruningGroup(number, np.arange(start, start + size), (), (), size, 0)


def selection(importances: list[list[float]], multiple: int = 1) -> Selection:
    sizes = [len(found) for found in importances]
    starts = np.cumsum([0, *sizes])
    return Selection(
        [group(place, int(starts[place]), size) for place, size in enumerate(sizes)],
        {place: np.array(found, float) for place, found in enumerate(importances)},
        units=int(starts[-1]),
        multiple=multiple,
    )


def removed(kept: np.ndarray) -> list[int]:
    return np.flatnonzero(~kept).tolist()


def test_uniform_takes_the_least_important_of_each_group() -> None:
    """At 0.5 the two least important of four go in both groups, whatever their size is."""
    found = selection([[4, 1, 3, 2], [10, 30, 20, 40]]).uniform({0: 0.5, 1: 0.5})
    assert removed(found) == [1, 3, 4, 6]


def test_ranked_takes_the_least_important_of_all() -> None:
    """Of two groups ranked together the three least important go."""
    assert removed(selection([[4, 1, 3, 9], [5, 2, 7, 8]]).ranked(3)) == [1, 2, 5]
    assert removed(selection([[4, 1, 3, 9], [5, 2, 1.5, 8]]).ranked(4)) == [1, 2, 5, 6]


def test_a_group_never_loses_everything() -> None:
    """Even with all ranked out one unit of each group stays, the most important one."""
    assert removed(selection([[4, 1, 3], [5, 2, 7]]).ranked(6)) == [1, 2, 3, 4]


@pytest.mark.parametrize("level", [0.0, 0.1, 0.3, 0.5, 0.77, 0.9, 1.0])
@pytest.mark.parametrize("multiple", [1, 2, 8, 16])
def test_what_is_kept_is_a_multiple_and_never_less_than_asked(level: float, multiple: int) -> None:
    """Of 48 at most the asked share goes, and the next multiple below would be too few."""
    kept = int(selection([list(range(48))], multiple).uniform({0: level}).sum())
    wanted = 48 * (1 - level)
    assert kept % multiple == 0
    assert kept >= wanted - 1e-9
    assert kept - multiple < max(wanted, 1) or kept == 48


def test_equal_importances_go_in_a_fixed_order() -> None:
    """Among equals the later filters go, each time."""
    found = [removed(selection([[1] * 6]).uniform({0: 0.5})) for _ in range(3)]
    assert found == [[3, 4, 5]] * 3


def test_least_finds_the_first_number_that_reaches() -> None:
    """Bisection returns the smallest number that suffices, and None when none does."""
    assert least(0, 100, lambda n: n >= 37) == 37
    assert least(0, 100, lambda n: True) == 0
    assert least(0, 100, lambda n: False) is None


# --- in a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("params", MODES)
def test_level_zero_keeps_all(params: dict[str, Any]) -> None:
    """Setting the level 0 after another one brings every filter back."""
    controller = prune(Residual(), params=params)
    controller.set_pruning_level(0.4)
    assert not controller.kept.all()
    controller.set_pruning_level(0)
    assert controller.kept.all()
    assert controller.compression_rate == 0


@pytest.mark.parametrize("params", MODES)
def test_a_higher_level_removes_more(params: dict[str, Any]) -> None:
    """What is gone at a level is gone at every higher one."""
    controller = prune(Residual(), params={"channel_multiple": 2, **params})
    before = np.ones_like(controller.kept)
    for level in np.linspace(0, 0.8, 17):
        controller.set_pruning_level(float(level))
        assert not (controller.kept & ~before).any()
        before = controller.kept
    assert sum(kept_filters(controller).values()) < 60  # of 88


@pytest.mark.parametrize("params", MODES)
def test_every_layer_keeps_a_multiple_of_eight(params: dict[str, Any]) -> None:
    """Uniform or global, of filters or of FLOPs: all channel counts are multiples of 8."""
    controller = prune(Residual(), params=params)
    for level in (0.1, 0.3, 0.5, 0.6):
        controller.set_pruning_level(level)
        assert [kept % 8 for kept in kept_filters(controller).values()] == [0, 0, 0, 0]


def test_uniform_levels_keep_the_expected_numbers() -> None:
    """At 0.5 of 16, 24 and 32 filters 8, 16 (12 rounded up) and 16 stay."""
    controller = prune(Residual())
    controller.set_pruning_level(0.5)
    assert kept_filters(controller) == {"stem": 8, "outer": 8, "inner": 16, "wide": 16}


def test_global_levels_spare_the_layer_that_stands_out() -> None:
    """A layer with a few filters that matter loses the others first."""
    model = Residual()
    with torch.no_grad():
        model.wide.weight[:8] *= 100
    controller = prune(model, params={"all_weights": True, "pruning_target": 0.25})
    controller.set_pruning_level(0.25)
    assert kept_filters(controller) == {"stem": 16, "outer": 16, "inner": 24, "wide": 8}


@pytest.mark.parametrize("all_weights", [False, True])
@pytest.mark.parametrize("level", [0.25, 0.5, 0.8])
def test_flops_targets_are_reached_and_hardly_exceeded(all_weights: bool, level: float) -> None:
    """With single channels the share of FLOPs is at least the level and at most 6 points more."""
    params = {"pruning_flops_target": level, "all_weights": all_weights, "channel_multiple": 1}
    controller = prune(Residual(), params=params)
    controller.set_pruning_level(level)
    assert level - 1e-5 <= controller.compression_rate <= level + 0.06


def test_groups_may_have_levels_of_their_own() -> None:
    """A mapping prunes the groups that it names and leaves the others whole."""
    controller = prune(Residual(), params={"channel_multiple": 1})
    controller.set_pruning_level({1: 0.25, 2: 0.5})
    assert kept_filters(controller) == {"stem": 16, "outer": 16, "inner": 18, "wide": 16}
    assert controller.current_groupwise_pruning_level == {0: 0.0, 1: 0.25, 2: 0.5}
    assert controller.pruning_level == pytest.approx(22 / 88)


@pytest.mark.parametrize(
    ("params", "level", "advice"),
    [
        ({}, -0.1, "from 0 to 1"),
        ({}, 1.5, "from 0 to 1"),
        ({}, float("nan"), "from 0 to 1"),
        ({}, {7: 0.5}, "groups 0 to 2"),
        ({}, {1: 2.0}, "levels from 0 to 1"),
        ({"all_weights": True}, {1: 0.5}, "do not go with all_weights"),
        ({"all_weights": True}, 0.9, "0.636 is the most.*wide keeps 8 of 32"),
        ({"pruning_flops_target": 0.5}, 0.9, "0.837 is the most.*Linear\\[head\\]"),
    ],
)
def test_an_impossible_level_is_refused(params: dict[str, Any], level: Any, advice: str) -> None:
    """The error says what is possible and what limits it; the masks stay as they were."""
    controller = prune(Residual(), params=params)
    controller.set_pruning_level(0.3)
    before = controller.kept
    with pytest.raises(nncf.ConfigError, match=advice):
        controller.set_pruning_level(level)
    assert (controller.kept == before).all()


@pytest.mark.parametrize(
    "params",
    [
        {"pruning_flops_target": 0.9},
        {"pruning_target": 0.7, "all_weights": True},
        {"pruning_target": 0.3, "channel_multiple": 64},
    ],
)
def test_a_target_out_of_reach_is_refused_at_creation(params: dict[str, Any]) -> None:
    """The error names the most that can be removed and the limiting layers; nothing has changed."""
    model = Residual()
    with pytest.raises(nncf.ConfigError, match=r"is the most\. Each layer keeps a multiple of"):
        prune(model, params=params)
    assert [name for name, _ in model.named_children()] == [
        name for name, _ in Residual().named_children()
    ]


def test_a_target_that_removes_nothing_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """A tenth of 16, 24 and 32 filters is no multiple of 8 anywhere, which is said."""
    prune(Residual(), params={"pruning_target": 0.1})
    assert "removes no filter at all" in caplog.text


@pytest.mark.parametrize("params", MODES)
def test_the_greatest_rate_can_be_set(params: dict[str, Any]) -> None:
    """maximal_compression_rate itself is a level that can be set."""
    controller = prune(Residual(), params=params)
    controller.set_pruning_level(controller.maximal_compression_rate)
    assert kept_filters(controller) == {"stem": 8, "outer": 8, "inner": 8, "wide": 8}


class Bottlenecks(nn.Module):
    """The shapes of ResNet-50: stages of 3, 4, 6 and 3 blocks, 25 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.blocks, self.shortcuts = nn.ModuleList(), nn.ModuleDict()
        width = 64
        for stage, count in enumerate((3, 4, 6, 3)):
            inner = 64 * 2**stage
            for place in range(count):
                stride = 2 if stage and not place else 1
                if not place:
                    shortcut = nn.Conv2d(width, 4 * inner, 1, stride, bias=False)
                    self.shortcuts[str(len(self.blocks))] = shortcut
                layers = [
                    nn.Conv2d(width, inner, 1, bias=False),
                    nn.BatchNorm2d(inner),
                    nn.ReLU(),
                    nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(inner),
                    nn.ReLU(),
                    nn.Conv2d(inner, 4 * inner, 1, bias=False),
                    nn.BatchNorm2d(4 * inner),
                ]
                self.blocks.append(nn.Sequential(*layers))
                width = 4 * inner
        self.head = nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for place, block in enumerate(self.blocks):
            name = str(place)
            x = (block(x) + (self.shortcuts[name](x) if name in self.shortcuts else x)).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Give torch one thread: waiting for a second one would count as the processor's time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_setting_a_level_of_a_large_network_is_quick() -> None:
    """A share of FLOPs of a network like ResNet-50, ranked globally, takes less than a second."""
    model = Bottlenecks()
    assert sum(p.numel() for p in model.parameters()) > 25e6
    params = {"prune_downsample_convs": True, "pruning_flops_target": 0.5, "all_weights": True}
    controller = prune(model, params=params)
    times = []
    for level in (0.3, 0.4, 0.5):
        start = time.process_time()  # others may use the machine too
        controller.set_pruning_level(level)
        times.append(time.process_time() - start)
    assert min(times) < 1


def test_limits_give_back_what_an_axis_needs() -> None:
    """An axis gets its most important units back until a multiple is left, one that normalises two."""
    importances = {0: np.array([4.0, 3.0, 2.0, 1.0])}
    only = group(0, 0, 4)

    def kept(*limits: Limit) -> list[int]:
        chosen = Selection([only], importances, units=4, multiple=1, limits=limits)
        return np.flatnonzero(chosen.uniform({0: 0.75})).tolist()

    assert kept() == [0]
    assert kept(Limit(np.array([2, 3]))) == [0, 2]
    assert kept(Limit(np.array([0, 1, 2, 3]), multiple=3)) == [0, 1, 2]
    assert kept(Limit(np.array([0, 2]), whole=True)) == [0, 2]
