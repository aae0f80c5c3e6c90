# SPDX-License-Identifier: Apache-2.0
"""Which weights get a mask: scopes, shared and computed weights, frozen layers, patterns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nncf


def layout_of(model, shape=(1, 8, 6, 6), root=None, **section):
    """Return the Layout of magnitude sparsity on a model."""
    text = {
        "input_info": {"sample_size": list(shape)},
        "compression": {"algorithm": "magnitude_sparsity", **section},
        **(root or {}),
    }
    _, model = nncf.create_compressed_model(model, text, dump_graphs=False)
    return model.compression.layout


def reasons(layout):
    return {skip.address.partition("|")[0].split("/")[-2]: skip.reason for skip in layout.skipped}


class Kinds(nn.Module):
    """One of each kind of weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.transposed = nn.ConvTranspose2d(8, 6, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(6)
        self.words = nn.Embedding(12, 8)
        self.product = nn.Parameter(torch.randn(6, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.transposed(self.depthwise(self.conv(x)))
        x = self.norm(x) + self.words(torch.arange(6))[:, :6]
        x = x.mean((2, 3)) @ self.product
        return self.head(x)


def test_all_kinds_of_weights_get_a_mask():
    """Convolutions of all kinds, embeddings, linear layers and products; no norms, no biases."""
    layout = layout_of(Kinds())
    shapes = [insert.shape for insert in layout]
    assert shapes == [(8, 4, 3, 3), (8, 1, 3, 3), (8, 3, 3, 3), (12, 8), (6, 4), (3, 4)]
    assert all(insert.name.endswith("|WEIGHT|MASK") for insert in layout)


def test_patterns_go_along_the_input_channels():
    """Axis 1 of convolutions and linear layers, 0 of transposed ones and of products with a matrix."""
    layout = layout_of(Kinds(), params={"pattern": "1:2"})
    axes = {insert.name.split("/")[-2]: insert.op.axis for insert in layout}
    assert axes == {
        "Conv2d[conv]": 1,
        "ConvTranspose2d[transposed]": 0,
        "Kinds": 0,
        "Linear[head]": 1,
    }
    skipped = reasons(layout)
    assert "1 of them, are no multiple of 2" in skipped["Conv2d[depthwise]"]
    assert "embedding sums no products" in skipped["Embedding[words]"]


def test_groups_of_a_transposed_convolution_are_not_mixed():
    """A pattern must divide the input channels of each group, not only all of them."""
    layout = layout_of(Kinds(), params={"pattern": "4:8"})
    assert "4 of them, are no multiple of 8" in reasons(layout)["ConvTranspose2d[transposed]"]
    assert len(layout) == 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    ("section", "root", "reason"),
    [
        ({"ignored_scopes": "Net/Conv2d[first]"}, {}, 'ignored by the scope "Net/Conv2d[first]"'),
        ({}, {"ignored_scopes": "{re}first"}, 'ignored by the scope "{re}first"'),
        ({"target_scopes": "{re}second"}, {}, "not among the target_scopes"),
        ({"target_scopes": "{re}first"}, {"target_scopes": "{re}second"}, "not among"),
    ],
)
def test_scopes_choose_layers(section, root, reason):
    """Scopes of the algorithm and of the top level, which wins with its targets."""
    layout = layout_of(Net(), root=root, **section)
    assert [insert.points[0].address for insert in layout] == ["Net/Conv2d[second]/conv2d_0"]
    assert reason in reasons(layout)["Conv2d[first]"]


def test_an_unknown_scope_is_an_error():
    """A scope that matches nothing names the nearest; with ``validate_scopes`` false it passes."""
    with pytest.raises(nncf.ScopeNotFound, match=r"magnitude_sparsity\.ignored_scopes\[0\]"):
        layout_of(Net(), ignored_scopes="Net/Conv2d[third]")
    assert len(layout_of(Net(), ignored_scopes="Net/Conv2d[third]", validate_scopes=False)) == 2


def test_a_registered_module_can_opt_out():
    """``register_module(ignored_algorithms=…)`` keeps its weights out."""

    @nncf.register_module(ignored_algorithms=["magnitude_sparsity"])
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

        def forward(self, x):
            return F.conv2d(x, self.weight)

    layout = layout_of(nn.Sequential(Own(), nn.Conv2d(8, 4, 1)))
    assert len(layout) == 1
    assert "registered as ignored" in layout.skipped[0].reason


class Tied(nn.Module):
    """An embedding whose weight is also that of the output layer."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(self.words(tokens))


def tied(**section):
    info = {"sample_size": [1, 5], "type": "long"}
    text = {
        "input_info": info,
        "compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5, **section},
    }
    return nncf.create_compressed_model(Tied(), text, dump_graphs=False)


def test_a_shared_weight_has_one_mask():
    """All operations that use a parameter share its mask, which counts once."""
    controller, model = tied()
    (insert,) = model.compression.layout
    assert len(insert.points) == 2
    found = controller.statistics().magnitude_sparsity.model_statistics
    assert (found.sparsity_level, found.sparsity_level_for_layers) == (0.5, 0.5)
    plain = controller.strip()
    assert plain.head.weight is plain.words.weight
    assert int((plain.head.weight == 0).sum()) == 48


def test_a_weight_that_is_masked_in_one_place_only_stays_dense():
    """Ignored in one of its uses, a shared weight keeps its values; the other use masks it."""
    controller, model = tied(ignored_scopes="{re}words")
    tokens = torch.arange(5)[None]
    expected = model.eval()(tokens)
    plain = controller.strip()
    assert torch.equal(plain(tokens), expected)
    assert torch.equal(plain.head.weight, model.head.weight)
    assert int((model.head.weight == 0).sum()) == 0
    assert not torch.equal(F.linear(model.words(tokens), model.head.weight), expected)


class Standardised(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.head(F.conv2d(x, self.weight - self.weight.mean()))


def test_computed_weights_are_skipped_with_the_reason():
    """A weight that the forward computes has no parameter to choose from, which is said."""
    layout = layout_of(Standardised())
    assert len(layout) == 1
    assert "computed from weight in the forward" in layout.skipped[0].reason


def test_frozen_layers_are_an_error_that_names_them():
    """Frozen weights cannot adapt; ignored, they are no problem. The model stays as it was."""
    model = Net()
    model.second.weight.requires_grad_(False)
    with pytest.raises(nncf.ModelError, match=r"second\.weight.*unfreeze.*ignored_scopes"):
        layout_of(model)
    assert not hasattr(model, "compression")
    assert len(layout_of(model, ignored_scopes="{re}second")) == 1
