# SPDX-License-Identifier: Apache-2.0
"""Bit widths by reinforcement learning: an agent tries policies and is told their accuracy.

In each episode the agent goes through the quantizers in order of execution. It sees what each is
for (``FEATURES``) and its last action, and answers with a number from 0 to 1 that means a width.
What is too large for the wanted size is narrowed, from the last layer backwards, and the model is
evaluated. The first episodes are random. Then every other one is the agent's, with noise that
fades, and the ones between vary the best policy so far, from which the agent learns as well: with
the few episodes that a large model allows this finds more than the agent alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nncf.algorithms.mixed_precision import report
from nncf.algorithms.mixed_precision.plan_file import write_plan
from nncf.algorithms.mixed_precision.space import Quantizer, Space, Widths
from nncf.errors import ConfigError, DataError, LevelError
from nncf.logging import nncf_logger

FEATURES = (
    *("depthwise", "in_channels", "out_channels", "stride", "kernel", "values"),
    *("input_size", "place", "weight"),
)
"""What the agent sees of a quantizer, each scaled to 0…1 over all; the last action comes on top."""

SEED = 0
_NOISE, _FADING = 0.3, 0.98
_REDRAWN = 0.2  # share of the best actions that is drawn anew
_FLOAT_BITS = 32

State = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One action of an episode: what was seen, what was done, what the episode ended with."""

    state: State
    action: float
    reward: float


class Agent(Protocol):
    """Something that chooses an action for a state, and learns from whole episodes."""

    def act(self, state: State) -> float: ...

    def learn(self, steps: Sequence[Step]) -> None: ...


@dataclass(frozen=True)
class Arena:
    """What the search plays in.

    ``features`` by quantizer, ``judge(widths)`` evaluates the model with these widths,
    ``full_score`` is that of the model in floating point, ``show(done)`` tells the progress.
    """

    features: Mapping[str, Sequence[float]]
    judge: Callable[[Widths], float]
    full_score: float
    show: Callable[[int], None]


@dataclass(frozen=True)
class Episode:
    """What was tried, and how it did; ``share`` is the size as a share of floating point's."""

    widths: Widths
    score: float
    share: float


def choose(
    options: Any, space: Space, arena: Arena, agent: Agent, folder: Path | None
) -> dict[str, int]:
    """Return the widths of the best episode; the plan goes into ``folder`` unless that is None."""
    episodes = play(options, space, arena, agent)
    best = max(episodes, key=lambda episode: episode.score)
    counts = Counter(best.widths[name] for name in space.weights)
    nncf_logger.info(
        "Bit widths of weights by autoq: %s. Score %.4g at %.4g of the size, %.4g in floating "
        "point; %d different policies in %d episodes.",
        ", ".join(f"{bits} bits: {counts[bits]}" for bits in sorted(counts)),
        *(best.score, best.share, arena.full_score),
        *(len({tuple(episode.widths.items()) for episode in episodes}), len(episodes)),
    )
    if folder is not None:
        write_plan(folder, best.widths, space.quantizers)
        if options.dump_init_precision_data:
            report.write_episodes(folder, episodes)
    return dict(best.widths)


def check(options: Any, space: Space, device: str) -> None:
    """Raise ConfigError or LevelError for a search that cannot find anything."""
    if device not in ("TRIAL", "VPU"):
        raise ConfigError(
            f'initializer.precision.type "autoq" is for target_device "TRIAL" or "VPU", found '
            f'"{device}". Set one of them, or remove the section.'
        )
    if options.iter_number == 0:
        raise ConfigError(
            "initializer.precision.iter_number = 0: no episode is played, so nothing is chosen. "
            "Expected the number of policies to try, for example 300."
        )
    least = share_of(space, {name: min(q.widths) for name, q in space.weights.items()})
    if least > options.compression_ratio:
        raise LevelError(
            f"initializer.precision.compression_ratio = {options.compression_ratio:g}: the smallest "
            f"possible model has {least:.4g} of the size in floating point. Raise the ratio to "
            f"{math.ceil(least * 1e4) / 1e4:g} or more, or give fewer bits to choose from."
        )


def play(options: Any, space: Space, arena: Arena, agent: Agent) -> list[Episode]:
    """Return all episodes."""
    player = _Player(space, arena.features, agent)
    known: dict[tuple[int, ...], float] = {}
    episodes: list[Episode] = []
    best = -math.inf
    for number in range(options.iter_number):
        late = number - options.warmup_iter_number
        if late < 0:
            actions = player.random()
        elif late % 2 == 0:
            actions = player.by_agent(_NOISE * _FADING**late)
        else:
            actions = player.near_best()
        wanted = player.widths(actions)
        widths = settled(space, wanted, options.compression_ratio)
        key = tuple(widths.values())
        if key not in known:
            known[key] = arena.judge(widths)
        episodes.append(Episode(widths, known[key], share_of(space, widths)))
        done = player.done(actions, wanted, widths)
        if known[key] > best:
            best, player.best = known[key], done
        reward = known[key] * _scale(arena.full_score)
        states = player.states(done)
        agent.learn([Step(s, a, reward) for s, a in zip(states, done, strict=True)])
        arena.show(number + 1)
    return episodes


class _Player:
    """Makes the actions of an episode, one for each quantizer with a choice."""

    def __init__(self, space: Space, features: Mapping[str, Sequence[float]], agent: Agent) -> None:
        self.quantizers = [q for q in space.quantizers.values() if len(q.widths) > 1]
        rows = np.array([features[q.name] for q in self.quantizers], dtype=np.float32)
        self.rows = _scaled(rows)
        self.agent = agent
        self.generator = np.random.default_rng(SEED)
        self.best: list[float] = []

    def random(self) -> list[float]:
        drawn: list[float] = self.generator.uniform(size=len(self.rows)).tolist()
        return drawn

    def by_agent(self, noise: float) -> list[float]:
        actions: list[float] = []
        for row in self.rows:
            action = self.agent.act(_seen(row, actions)) + self.generator.normal(0.0, noise)
            actions.append(float(np.clip(action, 0.0, 1.0)))
        return actions

    def near_best(self) -> list[float]:
        """Return the best actions so far, some of them drawn anew."""
        actions = self.best or self.random()
        count = min(max(2, round(_REDRAWN * len(actions))), len(actions))
        places = self.generator.choice(len(actions), count, replace=False)
        anew = dict(zip(places.tolist(), self.generator.uniform(size=count), strict=True))
        return [float(anew.get(place, action)) for place, action in enumerate(actions)]

    def widths(self, actions: Sequence[float]) -> dict[str, int]:
        pairs = zip(actions, self.quantizers, strict=True)
        return {quantizer.name: width_of(action, quantizer) for action, quantizer in pairs}

    def done(self, actions: Sequence[float], wanted: Widths, widths: Widths) -> list[float]:
        """Return the actions that were carried out: others where a width had to be changed."""
        return [
            a if widths[q.name] == wanted[q.name] else action_for(widths[q.name], q)
            for a, q in zip(actions, self.quantizers, strict=True)
        ]

    def states(self, actions: Sequence[float]) -> list[State]:
        return [_seen(row, actions[:place]) for place, row in enumerate(self.rows)]


def _seen(row: State, before: Sequence[float]) -> State:
    """Return what the agent sees: the features of a quantizer, and its last action."""
    state: State = np.append(row, np.float32(before[-1] if before else 0.0))
    return state


# --- actions and widths --------------------------------------------------------------------------


def _threshold(bits: int) -> float:
    """Return the greatest action that means so many bits: 1/8 for 2, 1/2 for 4, 1 for 8."""
    return 2.0 ** (bits - 5) if bits < 5 else bits / 8


def width_of(action: float, quantizer: Quantizer) -> int:
    """Return the width that an action means for a quantizer, of those that it may have."""
    widths = sorted(quantizer.widths)
    return next((bits for bits in widths if action <= _threshold(bits)), widths[-1])


def action_for(bits: int, quantizer: Quantizer) -> float:
    """Return the middle of the actions that mean this width for a quantizer."""
    widths = sorted(quantizer.widths)
    place = widths.index(bits)
    low = _threshold(widths[place - 1]) if place else 0.0
    high = _threshold(bits) if place + 1 < len(widths) else 1.0
    return (low + high) / 2


def settled(space: Space, wanted: Widths, share: float) -> dict[str, int]:
    """Return the widths of all quantizers, near the wanted ones and within the size.

    No weight is wider than the activation that it meets. While the weights are too large, they are
    narrowed by one width each, from the last to the first.
    """
    widths = {n: wanted.get(n, q.widths[0]) for n, q in space.quantizers.items()}
    for product in space.products:
        if product.activation is not None and product.weight in space.weights:
            most = widths[product.activation]
            widths[product.weight] = _at_most(
                min(most, widths[product.weight]), space.weights[product.weight]
            )
    while share_of(space, widths) > share:
        before = dict(widths)
        for name in reversed(space.weights):
            widths[name] = _at_most(widths[name] - 1, space.weights[name])
            if share_of(space, widths) <= share:
                break
        if widths == before:
            break  # ``check`` has seen that the least widths are small enough
    return widths


def _at_most(bits: int, quantizer: Quantizer) -> int:
    return max((b for b in quantizer.widths if b <= bits), default=min(quantizer.widths))


def share_of(space: Space, widths: Widths) -> float:
    """Return the size of the quantized weights as a share of what they take in floating point."""
    bits = sum(q.values * widths[name] for name, q in space.weights.items())
    return bits / (_FLOAT_BITS * sum(q.values for q in space.weights.values()))


# --- what the agent is told ----------------------------------------------------------------------


def _scaled(features: State) -> State:
    low, high = features.min(axis=0), features.max(axis=0)
    scaled: State = (features - low) / np.where(high > low, high - low, 1.0)
    return scaled.astype(np.float32)


def _scale(full_score: float) -> float:
    """Return the power of ten that brings scores near the full one between 1 and 10."""
    if full_score == 0 or not math.isfinite(full_score):
        return 1.0
    return 10.0 ** -math.floor(math.log10(abs(full_score)))


def finite(score: Any) -> float:
    """Return a score as a number. Raises DataError for anything else."""
    try:
        value = float(score)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"initializer.precision: autoq_eval_fn returned {score!r:.100}. Expected a finite number, "
            "higher for better models: check the function that is given to "
            "register_default_init_args."
        )
    return value
