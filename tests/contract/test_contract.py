# SPDX-License-Identifier: Apache-2.0
"""What every algorithm keeps on every backend, whatever the model is."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf import algorithms
from tests.contract.cases import (
    BY_NAME,
    CASES,
    Case,
    compress,
    config_of,
    every_pair,
    every_static_pair,
    trained,
)
from tests.contract.comparing import (
    call,
    disturb,
    equal,
    gradients,
    same,
    stripped_same,
    unequal,
)
from tests.contract.models import EXAMPLES, Example, logits


def test_every_algorithm_that_trains_has_a_case() -> None:
    """Whoever adds an algorithm adds its row to the contract."""
    with_code = []
    for name in algorithms.names():
        try:
            algorithms.load(name)
        except nncf.ConfigError:
            continue
        with_code.append(name)
    assert with_code
    assert set(with_code) == {case.algorithm for case in CASES}


# --- the user's model stays the user's model ---------------------------------------------------


@every_pair
def test_class_keys_and_values_are_kept(case: Case, example: Example) -> None:
    """The model is the same object of the same class; original keys come first, with their values."""
    original, model = example.fresh(), example.fresh()
    attributes = set(vars(model))
    compressed = nncf.create_compressed_model(model, config_of(case, example), dump_graphs=False)[1]
    assert compressed is model
    assert type(model) is type(original)
    assert set(vars(model)) == attributes
    before, after = original.state_dict(), model.state_dict()
    assert list(after)[: len(before)] == list(before)
    for name, parameter in original.named_parameters():
        assert equal(after[name], parameter)


@every_pair
def test_creation_leaves_modes_and_random_stream_alone(case: Case, example: Example) -> None:
    """Training flags, ``requires_grad`` and the random stream are as they were before."""
    model = example.fresh()
    next(model.children()).eval()
    list(model.parameters())[-1].requires_grad_(False)
    flags = {name: module.training for name, module in model.named_modules()}
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    stream = torch.get_rng_state()
    nncf.create_compressed_model(model, config_of(case, example), dump_graphs=False)
    assert {n: m.training for n, m in model.named_modules() if n in flags} == flags
    assert {n: p.requires_grad for n, p in model.named_parameters() if n in trainable} == trainable
    assert equal(torch.get_rng_state(), stream)


class Broken(nncf.NNCFDataLoader):
    """Fails in the second batch of the ``fatal``-th time that it is read."""

    batch_size = 4

    def __init__(self, example: Example, fatal: int) -> None:
        self.example, self.fatal, self.times = example, fatal, 0

    def __iter__(self) -> Any:
        self.times += 1
        yield self.example.batch(0)
        if self.times == self.fatal:
            raise OSError("the disk is gone")


@every_pair
@pytest.mark.parametrize("fatal", [1, 2])
def test_failed_creation_leaves_the_model_as_it_was(
    case: Case, example: Example, fatal: int
) -> None:
    """After an error in the middle: no hook, no attribute, no key, no changed buffer is left."""
    model = example.fresh()
    twin, hooks = copy.deepcopy(model), hook_counts(model)
    attributes, modes = set(vars(model)), [m.training for m in model.modules()]
    stream = torch.get_rng_state()
    loader = Broken(example, fatal)
    config = nncf.register_default_init_args(config_of(case, example), loader)
    try:
        nncf.create_compressed_model(model, config, dump_graphs=False)
    except OSError:
        assert loader.times == fatal
    else:  # a model without batch norms reads the data once, some algorithms never
        assert loader.times < fatal
        has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert not (case.reads_data and has_norms)
        return
    assert set(vars(model)) == attributes
    assert hook_counts(model) == hooks
    assert [m.training for m in model.modules()] == modes
    assert same(model.state_dict(), twin.state_dict())
    assert equal(torch.get_rng_state(), stream)
    nncf.create_compressed_model(model, config_of(case, example), dump_graphs=False)


def hook_counts(model: nn.Module) -> list[tuple[int, int, int]]:
    return [
        (len(m._forward_pre_hooks), len(m._forward_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ]


# --- copies and files --------------------------------------------------------------------------


@every_pair
def test_deep_copy_computes_the_same_and_is_independent(case: Case, example: Example) -> None:
    """A deep copy gives the same bits, also after the original has changed."""
    _, model = trained(case, example)
    expected = call(model.eval(), example)
    twin = copy.deepcopy(model)
    disturb(model)
    assert same(call(twin, example), expected)
    assert unequal(call(model, example), expected)


@every_pair
def test_pickle_computes_the_same(case: Case, example: Example) -> None:
    """A pickled model gives the same bits and the same gradients after loading."""
    _, model = trained(case, example)
    twin = pickle.loads(pickle.dumps(model))
    assert same(call(twin.eval(), example), call(model.eval(), example))
    assert same(gradients(twin.eval(), example), gradients(model.eval(), example))


@every_pair
def test_state_round_trip(case: Case, example: Example) -> None:
    """A saved state, loaded with ``weights_only=True`` into a new instance, gives the same bits."""
    controller, model = trained(case, example)
    file = io.BytesIO()
    state = controller.get_compression_state()
    torch.save({"state_dict": model.state_dict(), "compression_state": state}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again, twin = compress(case, example, loaded["compression_state"], seed=1)
    count = nncf.load_state(twin, loaded["state_dict"], is_resume=True)
    assert count == len(model.state_dict())
    assert same(twin.state_dict(), model.state_dict())
    assert same(call(twin.eval(), example), call(model.eval(), example))
    assert again.get_compression_state() == state
    assert again.compression_stage() == controller.compression_stage()


@every_pair
def test_strip_computes_the_same_bits(case: Case, example: Example) -> None:
    """The stripped model computes what the compressed one computes; the latter is not touched."""
    controller, model = trained(case, example)
    model.eval()
    expected, state = call(model, example), copy.deepcopy(model.state_dict())
    stripped = controller.strip()
    assert stripped_same(case, stripped, example, expected)
    assert same(call(model, example), expected)
    assert same(model.state_dict(), state)
    assert type(stripped) is type(model)
    assert stripped_same(case, nncf.strip(model, do_copy=False), example, expected)


@every_static_pair
def test_export_computes_what_strip_computes(case: Case, example: Example, tmp_path: Path) -> None:
    """The ONNX file gives in ONNX Runtime what the stripped model gives, but for rare flips."""
    runtime = pytest.importorskip("onnxruntime")
    controller, model = trained(case, example)
    model.eval()
    args, kwargs = example.batch(5, size=1)
    expected = logits(controller.strip()(*args, **kwargs)).detach().numpy()
    path = tmp_path / "model.onnx"
    controller.export_model(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = [*args, *kwargs.values()]
    feeds = {i.name: v.numpy() for i, v in zip(session.get_inputs(), values, strict=True)}
    outputs = session.run(None, feeds)
    scale = abs(expected).max()
    assert min(abs(o - expected).max() for o in outputs if o.shape == expected.shape) < 0.05 * scale


def test_export_of_a_branching_model_says_why_not(tmp_path: Path) -> None:
    """A model that branches by its data has no file: an ExportError, and nothing is left."""
    controller, model = trained(BY_NAME["int8"], EXAMPLES["branching"])
    modes = [module.training for module in model.modules()]
    with pytest.raises(nncf.ExportError):
        controller.export_model(str(tmp_path / "model.onnx"))
    assert list(tmp_path.iterdir()) == []
    assert [module.training for module in model.modules()] == modes
