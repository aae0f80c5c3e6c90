# SPDX-License-Identifier: Apache-2.0
"""The agent of ``autoq``: a deterministic policy gradient (Lillicrap et al. 2015).

An actor maps a state to an action from 0 to 1, a critic tells what an action is worth, and the
actor climbs the critic (arXiv:1509.02971). Only the end of an episode has a reward, and the later
states do not show what the earlier actions were; so the critic learns for every action the reward
that its episode ended with, not an estimate made from the state after it. The agent runs on the
processor and draws from a generator of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nncf.algorithms.mixed_precision.autoq import SEED, State, Step

_HIDDEN = 300
_ACTOR_RATE, _CRITIC_RATE = 1e-3, 1e-3
_BATCH = 64
_EPISODES_KEPT = 256


class DeepAgent:
    """Learns which actions bring reward; ``waiting`` episodes pass before it starts to."""

    def __init__(self, inputs: int, *, waiting: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self._actor = _network(inputs, last=nn.Sigmoid())
            self._critic = _network(inputs + 1)
        self._optimizers = (
            torch.optim.Adam(self._actor.parameters(), _ACTOR_RATE),
            torch.optim.Adam(self._critic.parameters(), _CRITIC_RATE),
        )
        self._random = np.random.default_rng(SEED + 1)
        self._episodes: deque[Sequence[Step]] = deque(maxlen=_EPISODES_KEPT)
        self._waiting = waiting

    def act(self, state: State) -> float:
        with torch.no_grad():
            return float(self._actor(torch.from_numpy(state)[None]))

    def learn(self, steps: Sequence[Step]) -> None:
        """Remember an episode, and update as often as it has steps."""
        self._episodes.append(steps)
        self._waiting -= 1
        if self._waiting >= 0:
            return
        memory = [step for episode in self._episodes for step in episode]
        rewards = np.array([step.reward for step in memory])
        usual, spread = float(rewards.mean()), float(rewards.std()) or 1.0
        with torch.enable_grad():
            for _ in steps:
                drawn = self._random.integers(len(memory), size=min(_BATCH, len(memory)))
                self._update([memory[int(place)] for place in drawn], usual, spread)

    def _update(self, steps: Sequence[Step], usual: float, spread: float) -> None:
        states = torch.from_numpy(np.stack([step.state for step in steps]))
        actions = torch.tensor([[step.action] for step in steps], dtype=torch.float32)
        aims = torch.tensor([[(step.reward - usual) / spread] for step in steps])
        for_actor, for_critic = self._optimizers
        _step(for_critic, nn.functional.mse_loss(self._value(states, actions), aims))
        _step(for_actor, -self._value(states, self._actor(states)).mean())

    def _value(self, states: Tensor, actions: Tensor) -> Tensor:
        value: Tensor = self._critic(torch.cat([states, actions], dim=1))
        return value


def _network(inputs: int, *, last: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.Linear(inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU()]
    end = nn.Linear(_HIDDEN, 1)
    nn.init.uniform_(end.weight, -3e-3, 3e-3)
    nn.init.zeros_(end.bias)
    return nn.Sequential(*layers, end, *([] if last is None else [last]))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
