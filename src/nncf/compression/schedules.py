# SPDX-License-Identifier: Apache-2.0
"""Schedulers: counters of steps and epochs that change what a controller applies."""

from __future__ import annotations

from typing import Any


class Scheduler:
    """Counts training steps and epochs; subclasses act when an epoch or a step begins.

    Call ``epoch_step()`` before each epoch and ``step()`` before each optimizer step. Both
    counters start at −1; the first call makes them 0. A number given is the one that begins.
    """

    def __init__(self) -> None:
        self.current_step = -1
        self.current_epoch = -1

    def step(self, next_step: int | None = None) -> None:
        self.current_step = self.current_step + 1 if next_step is None else next_step

    def epoch_step(self, next_epoch: int | None = None) -> None:
        self.current_epoch = self.current_epoch + 1 if next_epoch is None else next_epoch

    def get_state(self) -> dict[str, Any]:
        """Return JSON-able state; ``load_state`` takes it back."""
        return {"current_step": self.current_step, "current_epoch": self.current_epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        self.current_step = state["current_step"]
        self.current_epoch = state["current_epoch"]


class CompositeScheduler(Scheduler):
    """Passes every call on to the schedulers of several algorithms."""

    def __init__(self, children: dict[str, Scheduler]) -> None:
        super().__init__()
        self.children = children

    def step(self, next_step: int | None = None) -> None:
        super().step(next_step)
        for child in self.children.values():
            child.step(next_step)

    def epoch_step(self, next_epoch: int | None = None) -> None:
        super().epoch_step(next_epoch)
        for child in self.children.values():
            child.epoch_step(next_epoch)

    def get_state(self) -> dict[str, Any]:
        children = {name: child.get_state() for name, child in self.children.items()}
        return {**super().get_state(), "children": children}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        for name, child in self.children.items():
            if name in state.get("children", {}):
                child.load_state(state["children"][name])
