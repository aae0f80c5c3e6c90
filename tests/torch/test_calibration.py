# SPDX-License-Identifier: Apache-2.0
"""Running a model over some of a loader's data without leaving a trace."""

from __future__ import annotations

import io
import logging
import random
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nncf.errors import DataError
from nncf.resources import NNCFDataLoader
from nncf.torch.calibration import batch_size, calibration_batches, evaluating, moved

MODEL = nn.Linear(3, 2)


def loader(samples: int, size: int = 4, **settings: Any) -> DataLoader:
    """Return a loader of pairs whose inputs count the samples."""
    inputs = torch.arange(samples * 3.0).reshape(samples, 3)
    return DataLoader(TensorDataset(inputs, torch.zeros(samples)), size, **settings)


class Counting:
    """Counts the batches that are taken from it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.taken = inner, 0

    def __iter__(self):
        for item in self.inner:
            self.taken += 1
            yield item


@pytest.mark.parametrize(
    ("asked", "sizes"), [(1, [4]), (4, [4]), (5, [4, 4]), (9, [4, 4, 2]), (100, [4, 4, 2])]
)
def test_as_many_batches_are_taken_as_needed(asked: int, sizes: list[int]) -> None:
    """ceil(samples / batch size) batches are taken, and not one more."""
    source = Counting(loader(10))
    batches = list(calibration_batches(source, asked, MODEL))
    assert [batch.samples for batch in batches] == sizes
    assert [batch.index for batch in batches] == list(range(len(sizes)))
    assert source.taken == len(sizes)
    assert batches[0].args[0].shape == (4, 3)


def test_a_short_loader_is_used_up_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    """A loader with fewer samples than asked for is used up, with one line in the log."""
    with caplog.at_level(logging.INFO, "nncf"):
        list(calibration_batches(loader(10), 256, MODEL, description="Ranges"))
    assert caplog.messages == [
        "Ranges: 256 samples were asked for, the data loader has 10: all of them were used."
    ]


@pytest.mark.parametrize("source", [[], iter([]), loader(3, drop_last=True)])
def test_an_empty_loader_is_an_error(source: Any) -> None:
    """A loader without a batch is reported, with what may be the cause."""
    with pytest.raises(DataError, match=r"yielded nothing.*drop_last.*generator"):
        list(calibration_batches(source, 8, MODEL))


class Said(NNCFDataLoader):
    """Says its batch size."""

    batch_size = 7

    def __iter__(self):
        yield torch.zeros(2, 3), {}


class Plain(NamedTuple):
    """Has a batch size."""

    batch_size: Any


@pytest.mark.parametrize(
    ("args", "source", "expected"),
    [
        ((torch.zeros(5, 3),), None, 5),
        ((torch.zeros(5, 3),), Said(), 7),
        ((torch.tensor(1.0), torch.zeros(6)), None, 6),
        (([torch.zeros(3, 8, 8)] * 4,), None, 4),
        (({"a": torch.zeros(2, 9)},), None, 2),
        ((torch.zeros(50, 4, 3),), Plain(4), 4),  # time first
        ((torch.zeros(50, 3, 4),), Plain(4), 50),
        ((torch.zeros(2, 4),), Plain(4), 2),  # a last batch
        ((torch.tensor(1.0),), Plain(4), 4),
        ((object(),), Plain(None), 1),
    ],
)
def test_the_batch_size_is_read_off_the_data(args: Any, source: Any, expected: int) -> None:
    """The data says how large a batch is; NNCFDataLoaders are believed; time may come first."""
    assert batch_size(args, {}, source) == expected


@dataclass(frozen=True)
class Record:
    """A frozen dataclass that holds a tensor."""

    x: Any
    name: str


class Movable:
    """Knows ``to``, like the batches of other libraries."""

    def to(self, device: Any) -> str:
        return f"on {device}"


def test_nested_structures_are_moved() -> None:
    """Tensors and objects with ``to`` are moved in every kind of container."""
    value = {
        "pair": (torch.zeros(1), [torch.zeros(1)]),
        "named": Plain(torch.zeros(1)),
        "record": Record(torch.zeros(1), "a"),
        "other": Movable(),
        "text": "kept",
    }
    found = moved(value, "meta")
    assert found["pair"][0].device.type == found["pair"][1][0].device.type == "meta"
    assert found["named"].batch_size.device.type == found["record"].x.device.type == "meta"
    assert (found["other"], found["text"], found["record"].name) == ("on meta", "kept", "a")
    assert value["record"].x.device.type == "cpu"


def test_the_device_argument_wins() -> None:
    """Batches go to the device that is named, else to the model's."""
    (batch,) = calibration_batches(loader(2), 1, MODEL, device="meta")
    assert batch.args[0].device.type == "meta"
    (batch,) = calibration_batches(loader(2), 1, nn.Linear(3, 2, device="meta"))
    assert batch.args[0].device.type == "meta"


class Busy(nn.Module):
    """Touches everything that a forward can touch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(2))
        self.register_buffer("positions", torch.arange(3).expand(2, 3))
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.latest = x[:2, 0]
        torch.rand(3), random.random(), numpy.random.rand()  # noqa: NPY002 (as users do)
        return self.norm(x)


def test_nothing_is_left_behind() -> None:
    """Training flags, buffers and random streams are as before, also after a failure."""
    model = Busy().train()
    model.frozen.eval()
    generator = torch.Generator().manual_seed(5)
    source = loader(8, shuffle=True, generator=generator)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    identities = {key: id(value) for key, value in model.named_buffers()}
    expected = _draw(generator)
    for fails in (False, True):
        generator.manual_seed(5)
        _seed()
        try:
            with evaluating(model, loader=source):
                assert not model.training
                assert not torch.is_grad_enabled()
                model.norm.training = True
                for batch in calibration_batches(source, 8, model):
                    model(*batch.args)
                if fails:
                    raise KeyError  # noqa: TRY301 (a block that fails is what is tested)
        except KeyError:
            assert fails
        assert _draw(generator, seed=False) == expected
        assert [m.training for m in model.modules()] == [True, True, False]
        assert {key: id(value) for key, value in model.named_buffers()} == identities
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key]), key


def _seed() -> None:
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)  # noqa: NPY002 (as users do)


def _draw(generator: torch.Generator, *, seed: bool = True) -> list[float]:
    if seed:
        _seed()
    own = torch.rand(1, generator=generator).item()
    return [own, torch.rand(1).item(), random.random(), numpy.random.rand()]  # noqa: NPY002 (same)


def test_what_shall_be_kept_is_kept() -> None:
    """Buffers of the named modules stay as they became, unless the block fails."""
    model = Busy()
    with evaluating(model, keep=[model.norm]):
        model.norm.training = True
        model(torch.randn(4, 3))
    assert model.norm.num_batches_tracked == 1
    assert model.calls == 0
    mean = model.norm.running_mean.clone()
    with pytest.raises(RuntimeError), evaluating(model, keep=[model.norm]):  # noqa: PT012 (same)
        model.norm.training = True
        model(torch.randn(4, 3))
        model(torch.randn(4, 7))
    assert torch.equal(model.norm.running_mean, mean)


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar writes to a terminal, and nothing at all to a file."""
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    for stream in (terminal, file):
        monkeypatch.setattr(sys, "stderr", stream)
        list(calibration_batches(loader(8), 8, MODEL, description="Ranges"))
    assert "Ranges" in terminal.getvalue()
    assert file.getvalue() == ""
