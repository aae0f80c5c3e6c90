# SPDX-License-Identifier: Apache-2.0
"""Bit widths by an agent: what it plays, what it learns, and what the search leaves behind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nncf.algorithms.mixed_precision import autoq
from nncf.algorithms.mixed_precision.autoq import Arena, Step, play, settled, share_of, width_of
from nncf.algorithms.mixed_precision.budget import Budget
from nncf.algorithms.mixed_precision.programme import solve
from nncf.algorithms.mixed_precision.space import Product, Quantizer, Space
from nncf.algorithms.mixed_precision.torch import DeepAgent
from nncf.errors import ConfigError, DataError, LevelError
from tests.algorithms.mixed_precision.mixed import Branching, compress, config, data, widths

AUTOQ = {"type": "autoq", "iter_number": 6, "warmup_iter_number": 3, "compression_ratio": 0.2}


def accuracy(model: nn.Module, loader: Any) -> float:
    model.eval()
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float().mean() for x, y in loader]
    return float(torch.stack(hits).mean())


def closeness(model: nn.Module, loader: Any) -> float:
    """Return how near the outputs are to one: finer than an accuracy."""
    model.eval()
    with torch.no_grad():
        return -float(sum((model(x) - 1).square().mean() for x, _ in loader))


def space_of(layers: int) -> Space:
    """Return a chain of layers, each of the same size, with activations of 8 bits."""
    quantizers: dict[str, Quantizer] = {}
    for number in range(layers):
        quantizers[f"a{number}"] = Quantizer(f"a{number}", (), (8,), weight=False)
        quantizers[f"w{number}"] = Quantizer(f"w{number}", (), (8, 4, 2), weight=True, values=100)
    products = [Product(f"w{number}", f"a{number}", 1.0) for number in range(layers)]
    return Space(quantizers, tuple(products))


@pytest.mark.parametrize(
    ("action", "bits"), [(0.0, 2), (0.125, 2), (0.13, 4), (0.5, 4), (0.51, 8), (1.0, 8)]
)
def test_actions_mean_widths_as_documented(action: float, bits: int) -> None:
    """Up to 1/8 means 2 bits, up to 1/2 means 4, more means 8."""
    assert width_of(action, Quantizer("w", (), (8, 4, 2), weight=True)) == bits


@pytest.mark.parametrize("offered", [(8, 4, 2), (8, 4), (8, 7, 6, 5, 4, 3, 2), (4, 2)])
def test_each_width_has_actions_of_its_own(offered: tuple[int, ...]) -> None:
    """The action that stands for a width means that width, whatever else there is."""
    quantizer = Quantizer("w", (), offered, weight=True)
    assert [width_of(autoq.action_for(b, quantizer), quantizer) for b in offered] == list(offered)


def test_policies_are_made_to_fit() -> None:
    """What is too large is narrowed from the last layer on, and no weight exceeds its activation."""
    space = space_of(4)
    wide = {f"w{n}": 8 for n in range(4)}
    found = settled(space, wide, 0.25)
    assert [found[f"w{n}"] for n in range(4)] == [8, 8, 8, 8]
    found = settled(space, wide, 28 / 128)
    assert [found[f"w{n}"] for n in range(4)] == [8, 8, 8, 4]
    found = settled(space, wide, 0.1)
    assert share_of(space, found) <= 0.1
    narrow = Space(
        {**space.quantizers, "a1": Quantizer("a1", (), (8, 4), weight=False)}, space.products
    )
    found = settled(narrow, {**wide, "a1": 4}, 0.25)
    assert [found[f"w{n}"] for n in range(4)] == [8, 4, 8, 8]


def test_an_agent_learns_what_is_rewarded() -> None:
    """After episodes that reward large actions in one state and small ones in another, it does so."""
    states = [np.array([x, 1 - x, 0.0], np.float32) for x in (0.0, 1.0)]
    agent = DeepAgent(3)
    before = [agent.act(state) for state in states]
    draw = np.random.default_rng(0)
    for _ in range(150):
        actions = draw.uniform(size=2)
        reward = float(actions[0] - actions[1])
        agent.learn(
            [Step(state, float(a), reward) for state, a in zip(states, actions, strict=True)]
        )
    after = [agent.act(state) for state in states]
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1


def test_an_agent_waits_while_episodes_are_random() -> None:
    """Until the warm-up is over the agent remembers but does not change."""
    state = np.zeros(3, np.float32)
    agent = DeepAgent(3, waiting=2)
    step = [Step(state, 0.3, 1.0)]
    before = agent.act(state)
    agent.learn(step)
    agent.learn([Step(state, 0.7, -1.0)])
    assert agent.act(state) == before
    agent.learn(step)
    assert agent.act(state) != before


PAIN = {f"w{number}": 10.0 ** ((7 * number) % 12 / 5 - 1) for number in range(12)}
"""What the width of 2 bits costs in a game of 12 layers; each further bit divides it by 4."""


def search(*, episodes: int, warm: int = 20, disturb: bool = False) -> list[autoq.Episode]:
    """Play a game whose layers differ in how much narrow widths hurt."""
    space = space_of(12)

    def judge(chosen: Any) -> float:
        if disturb:
            torch.rand(1)
        return 100 - sum(cost * 4.0 ** (2 - chosen[name]) for name, cost in PAIN.items())

    features = {
        n: [float(i), q.values, float(q.weight)]
        for i, (n, q) in enumerate(space.quantizers.items())
    }
    options = SimpleNamespace(iter_number=episodes, warmup_iter_number=warm, compression_ratio=0.15)
    arena = Arena(features, judge, 90.0, lambda _done: None)
    return play(options, space, arena, DeepAgent(4, waiting=warm))


def test_the_search_ends_better_than_it_begins() -> None:
    """Late episodes score more than random ones on average, and so does the best."""
    episodes = search(episodes=120)
    scores = [episode.score for episode in episodes]
    by_chance = [episode.score for episode in search(episodes=120, warm=120)]
    costs = {name: {b: cost * 4.0 ** (2 - b) for b in (8, 4, 2)} for name, cost in PAIN.items()}
    space = space_of(12)
    optimum = solve(space, costs, Budget("bytes", 0.15 * 32 * 1200))
    most = 100 - sum(costs[name][optimum[name]] for name in costs)
    assert np.mean(scores[-20:]) > np.mean(scores[:20])
    assert most >= max(scores) > max(by_chance)
    assert all(episode.share <= 0.15 for episode in episodes)


def test_chance_outside_changes_nothing() -> None:
    """Whatever the global generators do, the same episodes are played."""
    random = torch.get_rng_state()
    first = search(episodes=30)
    assert torch.equal(torch.get_rng_state(), random)
    assert [e.widths for e in search(episodes=30, disturb=True)] == [e.widths for e in first]


def test_a_model_is_searched_and_left_as_it_was() -> None:
    """The best policy is applied; weights, statistics, flags and random streams are those of before."""
    torch.manual_seed(0)
    model = Branching().train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    judged: list[tuple[dict[str, int], float]] = []

    def judge(candidate: Any, loader: Any) -> float:
        score = closeness(candidate, loader)
        if hasattr(candidate, "compression"):
            assert all(op.initialized for op in candidate.compression.ops.values())
            judged.append((widths(candidate), score))
            with torch.no_grad():
                candidate.conv1.weight.add_(1.0)  # whatever the function does is undone
            torch.rand(3)
        return score

    _, compressed = compress(AUTOQ, model=model, registered={"autoq_eval_fn": judge})
    assert torch.equal(torch.get_rng_state(), random)
    state = compressed.state_dict()
    same = [name for name in before if "running" not in name and "batches" not in name]
    assert all(torch.equal(state[name], before[name]) for name in same)
    assert compressed.training
    assert 1 < len(judged) <= 6
    best = max(judged, key=lambda pair: pair[1])[0]
    assert widths(compressed) == best
    plan = json.loads(Path("bitwidth_per_scope.json").read_text())["bitwidth_per_scope"]
    assert {name.removeprefix("Branching/"): bits for bits, name in plan} == best
    sizes = {"conv1": 108, "conv2": 288, "conv3": 32, "linear": 40}
    spent = sum(
        n * b for k, n in sizes.items() for w, b in best.items() if f"[{k}]" in w and "WEIGHT" in w
    )
    assert spent / (32 * sum(sizes.values())) <= 0.2


def test_a_share_of_the_data_is_used() -> None:
    """eval_subset_ratio gives the function the first batches of the loader, with its attributes."""
    seen = []

    def judge(model: Any, loader: Any) -> float:
        seen.append((len(loader), len(list(loader)), loader.batch_size))
        return accuracy(model, loader)

    registered = {"autoq_eval_fn": judge, "val_loader": data(40, batch=4)}
    compress({**AUTOQ, "eval_subset_ratio": 0.25}, registered=registered)
    assert set(seen) == {(3, 3, 4)}


def test_a_resumed_run_plays_no_episode() -> None:
    """The widths come from the compression state."""
    controller, model = compress(AUTOQ, registered={"autoq_eval_fn": closeness})

    def never(_model: Any, _loader: Any) -> float:
        raise AssertionError("an episode was played")

    state = controller.get_compression_state()
    _, again = compress(AUTOQ, state=state, registered={"autoq_eval_fn": never})
    assert widths(again) == widths(model)


@pytest.mark.parametrize(
    ("changed", "rest", "error", "words"),
    [
        ({}, {"registered": {}}, DataError, "autoq_eval_fn="),
        ({}, {"device": "ANY"}, ConfigError, "leaves nothing to choose"),
        ({"iter_number": 0}, {}, ConfigError, "no episode is played"),
        ({"compression_ratio": 0.05}, {}, LevelError, r"smallest possible model has 0\.0625"),
        ({}, {"registered": {"autoq_eval_fn": lambda _m, _l: None}}, DataError, "returned None"),
        (
            {},
            {"registered": {"autoq_eval_fn": lambda _m, _l: float("nan")}},
            DataError,
            "Expected a finite number",
        ),
        (
            {"eval_subset_ratio": 0.5},
            {"registered": {"autoq_eval_fn": closeness, "val_loader": (x for x in data())}},
            DataError,
            "does not say how many batches",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    changed: Any, rest: Any, error: type[Exception], words: str
) -> None:
    """Missing functions, impossible sizes and useless scores are errors; the model is untouched."""
    model = Branching()
    before = copy.deepcopy(model.state_dict())
    rest = {"registered": {"autoq_eval_fn": closeness}, **rest}
    with pytest.raises(error, match=words):
        compress({**AUTOQ, **changed}, model=model, **rest)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_other_devices_are_refused() -> None:
    """Autoq is for TRIAL and VPU alone."""
    options = config(AUTOQ).options.compression[0].initializer.precision
    with pytest.raises(ConfigError, match='"TRIAL" or "VPU", found "GPU"'):
        autoq.check(options, space_of(2), "GPU")


def test_episodes_are_dumped() -> None:
    """A table and a plot of all episodes are written."""
    pytest.importorskip("matplotlib")
    compress({**AUTOQ, "dump_init_precision_data": True}, registered={"autoq_eval_fn": closeness})
    assert len(Path("autoq_episodes.csv").read_text().splitlines()) == 7
    assert Path("autoq_episodes.png").read_bytes().startswith(b"\x89PNG")
