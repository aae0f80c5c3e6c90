# SPDX-License-Identifier: Apache-2.0
"""Hooks enter and leave the mode with the modules that run, whatever happens there."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode

from nncf.torch import hooks


class Tape(hooks.ScopedMode):
    """Writes down the key of every call of relu."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.token)
        self.keys = source.keys

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "relu":
            self.keys.append(self.next_key("relu"))
        return func(*args, **(kwargs or {}))


class Source:
    """Makes a fresh mode for every forward; all write to one list."""

    def __init__(self, token: str = "one") -> None:
        self.token = token
        self.keys: list[str] = []
        self.modes = 0

    def make_mode(self, module: nn.Module) -> hooks.ScopedMode:
        self.modes += 1
        return Tape(self)


def attach(model: nn.Module, token: str = "one") -> Source:
    source = Source(token)
    for path, module in model.named_modules():
        hooks.attach(module, hooks.scope_names(model)[path], source)
    return source


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(torch.relu(self.inner(x))))


@pytest.fixture(autouse=True)
def _no_mode_is_left() -> Any:
    yield
    assert hooks.active_mode() is None
    assert _get_current_function_mode() is None


def test_scope_names() -> None:
    """A scope is the path of classes and attributes; a shared module has one per path."""
    model = Block()
    model.other = model.inner
    names = hooks.scope_names(model)
    assert names["inner.0"] == "Block/Sequential[inner]/ReLU[0]"
    assert names["other.0"] == "Block/Sequential[other]/ReLU[0]"


def test_calls_count_within_their_scope() -> None:
    """Calls are counted per scope, over the whole forward, and from 0 in the next."""
    model = Block()
    source = attach(model)
    inner = "Block/Sequential[inner]/ReLU[0]/relu_"
    for _ in range(2):
        source.keys.clear()
        model(torch.rand(2))
        assert source.keys == [inner + "0", "Block/relu_0", inner + "1", "Block/relu_1"]
    assert source.modes == 2


def test_entry_at_a_submodule() -> None:
    """A part of the model that is called alone has its full scope."""
    model = Block()
    source = attach(model)
    model.inner(torch.rand(2))
    assert source.keys == ["Block/Sequential[inner]/ReLU[0]/relu_0"]


def test_nothing_counts_outside() -> None:
    """Calls before, between and after forwards do not pass through the mode."""
    model = Block()
    source = attach(model)
    torch.relu(model(torch.relu(torch.rand(2))))
    assert len(source.keys) == 4


def test_model_within_a_model() -> None:
    """A compressed model inside another one runs in its own mode, then the outer one goes on."""
    teacher = Block()
    inner_source = attach(teacher, "two")

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ReLU()
            self.teachers = [teacher]  # no submodule

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.teachers[0](self.body(x)))

    student = Student()
    source = attach(student)
    student(torch.rand(2))
    assert len(inner_source.keys) == 4
    assert source.keys[0] == "Student/ReLU[body]/relu_0"
    assert source.keys[-1].startswith("Student/relu_")


def test_exception_in_forward() -> None:
    """An exception leaves all scopes and the mode; the next forward is as the first."""

    class Failing(Block):
        failing = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.failing:
                self.inner(x)
                raise ValueError("on purpose")
            return super().forward(x)

    model = nn.Sequential(Failing())
    source = attach(model)
    with pytest.raises(ValueError, match="on purpose"):
        model(torch.rand(2))
    assert hooks.active_mode() is None
    model[0].failing = False
    source.keys.clear()
    model(torch.rand(2))
    assert source.keys[1] == "Sequential/Failing[0]/relu_0"


def test_exception_caught_by_the_model() -> None:
    """A model that catches an exception of its part goes on in its own scope."""

    class Part(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("on purpose")

    class Catching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.part(x)
            except ValueError:
                return torch.relu(x)

    model = Catching()
    source = attach(model)
    model(torch.rand(2))
    assert source.keys == ["Catching/relu_0"]


def test_exception_before_the_scope_is_entered() -> None:
    """When a pre-hook of somebody else fails first, the parent's scope stays."""

    class Catching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.part(x)
            except ValueError:
                return torch.relu(x)

    def fail(*_: Any) -> None:
        raise ValueError("on purpose")

    model = Catching()
    source = attach(model)
    model.part.register_forward_pre_hook(fail, prepend=True)
    model(torch.rand(2))
    assert source.keys == ["Catching/relu_0"]


def test_interrupt() -> None:
    """After Ctrl-C, which no hook sees, the next forward starts afresh."""

    class Slow(Block):
        interrupted = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inner(x)
            if self.interrupted:
                raise KeyboardInterrupt
            return torch.relu(x)

    model = Slow()
    source = attach(model)
    with pytest.raises(KeyboardInterrupt):
        model(torch.rand(2))
    model.interrupted = False
    source.keys.clear()
    model(torch.rand(2))
    assert source.keys == ["Slow/Sequential[inner]/ReLU[0]/relu_0", "Slow/relu_0"]


def test_modes_that_nothing_leaves() -> None:
    """What was entered within the context and not left, in whatever order, is left at its end."""
    model = Block()
    attach(model)
    with hooks.leaving_all_modes():
        for hook in model._forward_pre_hooks.values():
            hook(model, ())
        Tape(Source()).__enter__()
    assert hooks.active_mode() is None
    assert _get_current_function_mode() is None


def test_recursion() -> None:
    """A model that calls itself counts on within the same forward."""

    class Tree(nn.Module):
        def forward(self, x: torch.Tensor, depth: int) -> torch.Tensor:
            x = torch.relu(x)
            return x if depth == 0 else self(x, depth - 1)

    model = Tree()
    source = attach(model)
    model(torch.rand(2), 2)
    assert source.keys == ["Tree/relu_0", "Tree/relu_1", "Tree/relu_2"]
    assert source.modes == 1


def test_threads() -> None:
    """Forwards in several threads do not see each other."""
    model = Block()
    source = attach(model)
    threads = [threading.Thread(target=model, args=(torch.rand(2),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(source.keys) == 32
    assert source.keys.count("Block/relu_1") == 8


def test_detach() -> None:
    """Only the hooks of one source are taken away."""
    model = Block()
    first, second = attach(model), attach(model, "two")
    for module in model.modules():
        hooks.detach(module, first)
    model(torch.rand(2))
    assert first.keys == []
    assert len(second.keys) == 4
    assert len(model._forward_hooks_always_called) == 1
