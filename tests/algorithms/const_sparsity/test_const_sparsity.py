# SPDX-License-Identifier: Apache-2.0
"""Zeros that are there stay zeros, wherever they come from."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import nncf


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


LAYERS = ("conv1", "conv2", "head")
INFO = {"sample_size": [1, 4, 6, 6]}


def sparse(seed=0):
    """Return a Net with the smaller half of each layer's weights zero."""
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        for name in LAYERS:
            weight = model.get_submodule(name).weight
            weight[weight.abs() < weight.abs().median()] = 0
    return model


def create(model, *further, state=None, **section):
    sections = [{"algorithm": "const_sparsity", **section}, *further]
    text = {"input_info": INFO, "compression": sections}
    return nncf.create_compressed_model(model, text, state, dump_graphs=False)


def zeros(model):
    return {name: model.get_submodule(name).weight == 0 for name in LAYERS}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in LAYERS)


def kept(model):
    names = {
        name.partition("[")[2].partition("]")[0]: op for name, op in model.compression.ops.items()
    }
    return {name: names[name].kept() for name in LAYERS}


def train(model, steps=3):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)
    for step in range(steps):
        images = torch.rand(8, 4, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


def test_zeros_stay_zero_in_training():
    """Trained on, the model has the zeros that it came with, while its other weights move."""
    model = sparse()
    before, weights = zeros(model), {n: model.get_submodule(n).weight.clone() for n in LAYERS}
    controller, model = create(model)
    assert controller.compression_stage() is nncf.CompressionStage.FULLY_COMPRESSED
    train(model)
    plain = controller.strip()
    assert same(zeros(plain), before)
    assert all(not torch.equal(plain.get_submodule(n).weight, weights[n]) for n in LAYERS)
    assert list(plain.state_dict()) == list(Net().state_dict())


def test_without_it_the_zeros_are_lost():
    """The same training without masks fills the zeros, so the test above means something."""
    model = sparse()
    before = int(zeros(model)["conv2"].sum())
    train(model)
    assert int(zeros(model)["conv2"].sum()) < before / 10


def test_statistics_count_the_zeros(caplog):
    """The level is that of the weights; there is no rate, and no warning."""
    with caplog.at_level(logging.WARNING, "nncf"):
        controller, model = create(sparse())
    assert caplog.text == ""
    expected = sum(int(z.sum()) for z in zeros(model).values()) / 888
    found = controller.statistics().const_sparsity
    assert found.model_statistics.sparsity_level_for_layers == pytest.approx(expected)
    assert found.tensorboard()["const_sparsity/sparsity_level_for_sparsified_layers"] == (
        pytest.approx(expected)
    )
    assert "Net/Conv2d[conv1]/conv2d_0" in found.to_str()
    assert controller.compression_rate is None
    controller.compression_rate = 0.9
    assert same(zeros(model), {n: ~k for n, k in kept(model).items()})


def test_a_dense_model_is_warned_about(caplog):
    """Nothing is zero, so nothing is kept, which is said with what to do."""
    with caplog.at_level(logging.WARNING, "nncf"):
        create(Net())
    assert "nothing to keep" in caplog.text
    assert "nncf.load_state" in caplog.text


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["plain", "wrapped"])
def test_masks_follow_weights_that_are_loaded(wrap):
    """A sparse checkpoint without masks, loaded afterwards, brings its zeros into the masks."""
    _, model = create(Net())
    checkpoint = sparse(1).state_dict()
    nncf.load_state(wrap(model), checkpoint)
    assert same({n: ~k for n, k in kept(model).items()}, zeros(sparse(1)))
    del checkpoint["conv1.weight"]
    other = sparse(2).state_dict()
    nncf.load_state(model, {"conv1.weight": other["conv1.weight"]})
    assert torch.equal(~kept(model)["conv1"], other["conv1.weight"] == 0)
    assert torch.equal(~kept(model)["conv2"], checkpoint["conv2.weight"] == 0)


def test_masks_of_a_checkpoint_win_over_its_weights():
    """The state of a model under magnitude sparsity, dense weights and masks, is taken as it is."""
    torch.manual_seed(3)
    section = {"algorithm": "magnitude_sparsity", "sparsity_init": 0.6}
    text = {"input_info": INFO, "compression": section}
    controller, teacher = nncf.create_compressed_model(Net(), text, dump_graphs=False)
    _, model = create(Net())
    nncf.load_state(model, teacher.state_dict(), is_resume=True)
    assert same(kept(model), kept(teacher))
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(model(x), teacher(x))
    assert torch.equal(model(x), controller.strip()(x))


@pytest.mark.parametrize(("prefix", "key"), [("nncf_module.", "binary_mask"), ("", "_binary_mask")])
def test_masks_of_earlier_releases_load(prefix, key, caplog):
    """A sparse checkpoint of releases 1.x to 2.6, masks of ones and zeros beside dense weights."""
    torch.manual_seed(4)
    old, masks = Net().state_dict(), {}
    state = {f"{prefix}{name}": value for name, value in old.items()}
    for name in LAYERS:
        masks[name] = torch.rand_like(old[f"{name}.weight"]) > 0.5
        state[f"{prefix}{name}.pre_ops.0.op.{key}"] = masks[name].float()
    _, model = create(Net())
    nncf.load_state(model, state, is_resume=True)
    assert same(kept(model), masks)
    assert "names of an earlier release" in caplog.text


def test_resumed_masks_are_those_of_the_run():
    """With the compression state masks come from the state dict, also where weights became zero."""
    controller, model = create(sparse())
    with torch.no_grad():
        model.conv2.weight.zero_()
    expected = kept(model)
    again, twin = create(Net(), state=controller.get_compression_state())
    nncf.load_state(twin, model.state_dict(), is_resume=True)
    assert same(kept(twin), expected)
    assert str(again.statistics()) == str(controller.statistics())


def test_frozen_layers_may_keep_their_zeros():
    """A layer that does not train has its zeros anyway."""
    model = sparse()
    model.conv1.weight.requires_grad_(False)
    _, model = create(model)
    assert same({n: ~k for n, k in kept(model).items()}, zeros(model))


def test_quantized_weights_keep_their_zeros():
    """With INT8 on top the zeros are zeros of the quantized weights too."""
    model = sparse()
    before = zeros(model)
    controller, model = create(model, {"algorithm": "quantization"})
    train(model)
    plain = controller.strip()
    found = zeros(plain)
    assert all((found[name] | ~before[name]).all() for name in LAYERS)
    assert torch.allclose(
        plain.eval()(torch.ones(1, 4, 6, 6)), model.eval()(torch.ones(1, 4, 6, 6))
    )


@pytest.mark.parametrize("other", ["magnitude_sparsity", "rb_sparsity"])
def test_two_algorithms_that_choose_zeros_are_refused(other):
    """Keeping zeros and making them contradict each other, which the configuration says."""
    with pytest.raises(nncf.ConfigError, match="decides which single weights are zero"):
        create(sparse(), {"algorithm": other})
