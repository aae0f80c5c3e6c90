# SPDX-License-Identifier: Apache-2.0
"""What happens on a first day: slips get an error of our own that says what to do instead."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.torch import hooks

BATCH = (torch.ones(8, 3, 8, 8), torch.zeros(8))


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)]
    return nn.Sequential(*layers)


def config(loader: Any = None, **keys: Any) -> NNCFConfig:
    found = NNCFConfig.from_dict({"compression": {"algorithm": "quantization"}, **keys})
    return found if loader is None else register_default_init_args(found, loader)


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """Return what must be as before after a failure."""
    values = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return list(values), list(values.values()), hooks, [m.training for m in model.modules()]


def is_same(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    equal = all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))
    return equal and (one[0], *one[2:]) == (two[0], *two[2:])


COMPRESSING: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no data": (config, nncf.ConfigError, "register_default_init_args"),
    "empty loader": (lambda: config([]), nncf.DataError, "yielded nothing"),
    "NaN": (lambda: config([(BATCH[0] * torch.nan, 0)]), nncf.DataError, "NaN or infinity"),
    "other channels": (lambda: config([(BATCH[0][:, :1], 0)]), nncf.ModelError, r"\(8, 1, 8, 8\)"),
    "a path": (lambda: "config.json", nncf.ConfigError, r"from_json\(path\)"),
    "unknown scope": (
        lambda: config([BATCH], ignored_scopes=["Sequential/Conv2d[1]"]),
        nncf.ScopeNotFound,
        r"Nearest: .*Conv2d\[0\]",
    ),
    "bits": (
        lambda: config([BATCH], compression={"algorithm": "quantization", "weights": {"bits": 4}}),
        nncf.ConfigError,
        "8-bit symmetric signed per channel; .*TRIAL",
    ),
    "unwritable folder": (
        lambda: config([BATCH], log_dir="/dev/null/log"),
        nncf.ExportError,
        "a folder that you may write to",
    ),
    "contradiction": (
        lambda: config(
            [BATCH],
            compression=[{"algorithm": "binarization"}, {"algorithm": "magnitude_sparsity"}],
        ),
        nncf.ConfigError,
        r'both act on the weights of "Sequential/Conv2d\[0\]/conv2d_0".* ignored_scopes',
    ),
}


@pytest.mark.parametrize("slip", COMPRESSING)
def test_a_slip_is_explained_and_changes_nothing(slip: str) -> None:
    """create_compressed_model refuses with advice, and the model is as it was."""
    make, error, advice = COMPRESSING[slip]
    model = network()
    before = snapshot(model)
    with pytest.raises(error, match=advice):
        create_compressed_model(model, make())
    assert is_same(before, snapshot(model))


class Interrupted:
    """A loader whose user presses Ctrl-C at a batch, counted over all passes."""

    batch_size = 8

    def __init__(self, at: int) -> None:
        self.batches_left = at

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[Any]:
        for _ in range(len(self)):
            self.batches_left -= 1
            if not self.batches_left:
                os.kill(os.getpid(), signal.SIGINT)
            yield BATCH


@pytest.mark.parametrize("at", [1, 2, 10, 30], ids=["capture", "ranges", "middle", "batch norms"])
def test_an_interruption_changes_nothing(at: int) -> None:
    """Ctrl-C at any station of the initialisation leaves the model as it was."""
    model = network()
    before = snapshot(model)
    # A shell starts background jobs with Ctrl-C ignored.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            create_compressed_model(model, config(Interrupted(at)))
    finally:
        signal.signal(signal.SIGINT, ours)
    assert is_same(before, snapshot(model))
    assert hooks.active_mode() is None


def test_weights_of_another_model_change_nothing() -> None:
    """A state dict that does not fit is refused after initialisation; the model is as it was."""
    model = network()
    before = snapshot(model)
    with pytest.raises(nncf.CheckpointError):
        create_compressed_model(model, config([BATCH]), {"other.weight": torch.ones(1)})
    assert is_same(before, snapshot(model))


def test_compressing_twice_is_refused() -> None:
    """A compressed model is not compressed again, nor is a stripped one."""
    controller, model = create_compressed_model(network(), config([BATCH]))
    for again in (model, controller.strip()):
        with pytest.raises(nncf.ModelError, match="already been compressed"):
            create_compressed_model(again, config([BATCH]))


def test_a_configuration_without_compression_is_pointed_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A misspelled compression section leaves a warning for the slip and one for the effect."""
    create_compressed_model(network(), config([BATCH], compression=[]))
    assert "nothing is compressed" in caplog.text
    caplog.clear()
    _ = NNCFConfig.from_dict({"compresion": {"algorithm": "quantization"}}).options
    assert 'If you mean "compression"' in caplog.text


def test_a_hint_names_each_candidate_once() -> None:
    """The nearest valid values are listed without repetition."""
    section = {"algorithm": "quantization", "initializer": {"range": {"type": "minmax"}}}
    with pytest.raises(nncf.ConfigError) as caught:
        NNCFConfig.from_dict({"compression": section})
    assert str(caught.value).count('"min_max"') == 2  # among all that is allowed, and as nearest


def test_the_controller_prints_what_it_is_for() -> None:
    """Printing a controller names its algorithms, its stage and its calls."""
    controller, _ = create_compressed_model(network(), config([BATCH]))
    assert "quantization: stage FULLY_COMPRESSED" in repr(controller)
    assert "export_model(path)" in repr(controller)
