# SPDX-License-Identifier: Apache-2.0
"""Importance of filters, compared with plain numpy formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nncf.algorithms.filter_pruning.torch import filter_importance
from nncf.graph.channels import Producer
from tests.algorithms.filter_pruning.pruned import Residual, prune

FORMULAS = {
    "L1": lambda f: np.abs(f).sum(1),
    "L2": lambda f: np.sqrt((f**2).sum(1)),
    "geometric_median": lambda f: np.sqrt(((f[:, None] - f[None]) ** 2).sum(2)).sum(1),
}
LAYERS = {
    "convolution": (nn.Conv2d(3, 6, 3), 0),
    "grouped convolution": (nn.Conv2d(4, 6, 3, groups=2), 0),
    "transposed convolution": (nn.ConvTranspose2d(3, 6, 2), 1),
    "linear": (nn.Linear(7, 6), 0),
    "one-dimensional convolution": (nn.Conv1d(3, 6, 5), 0),
}


def filters_of(layer: nn.Module, axis: int) -> np.ndarray:
    weight = layer.weight.detach().double().numpy()
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("normalized", [False, True])
def test_importance_follows_its_formula(formula: str, kind: str, normalized: bool) -> None:
    """Each formula in numpy gives the same number for every filter of every kind of layer."""
    layer, axis = LAYERS[kind]
    filters = filters_of(layer, axis)
    if normalized:
        filters = filters / np.linalg.norm(filters)
    producer = Producer(kind, "0.weight", axis, np.arange(6))
    found = filter_importance(layer.weight, producer, formula, normalized=normalized)
    np.testing.assert_allclose(found, FORMULAS[formula](filters), rtol=1e-6, atol=1e-9)


def test_a_filter_between_all_others_is_the_least_important() -> None:
    """By the geometric median the mean of the other filters goes first, by norms it does not."""
    layer = nn.Conv2d(2, 6, 3)
    with torch.no_grad():
        layer.weight += 1
        layer.weight[4] = layer.weight[[0, 1, 2, 3, 5]].mean(0)
    producer = Producer("", "0.weight", 0, np.arange(6))
    found = filter_importance(layer.weight, producer, "geometric_median", normalized=False)
    assert found.argmin() == 4


def test_zeros_have_no_importance_and_raise_no_warning() -> None:
    """A layer of zeros, normalised, has the importance 0 for each filter."""
    layer = nn.Conv2d(2, 6, 3)
    nn.init.zeros_(layer.weight)
    producer = Producer("", "0.weight", 0, np.arange(6))
    found = filter_importance(layer.weight, producer, "L2", normalized=True)
    assert found.tolist() == [0.0] * 6


def test_layers_that_are_added_are_ranked_together() -> None:
    """The importance of a channel of a sum is the mean of both layers' filters."""
    model = Residual()
    controller = prune(model)
    stem, outer = (FORMULAS["L2"](filters_of(layer, 0)) for layer in (model.stem, model.outer))
    np.testing.assert_allclose(controller.importances[0], (stem + outer) / 2, rtol=1e-6)


def test_global_importance_is_relative_to_the_mean_of_the_group() -> None:
    """Ranked over all layers, each group's importances have the mean 1; coefficients change that."""
    controller = prune(Residual(), params={"all_weights": True})
    assert [found.mean() for found in controller.importances.values()] == pytest.approx([1, 1, 1])
    before = controller.importances[1]
    controller.child_ctrls[0].coefficients = {"inner.weight": (2.0, -0.5)}
    np.testing.assert_allclose(controller.importances[1], 2 * before - 0.5)
    np.testing.assert_allclose(controller.importances[2].mean(), 1)
