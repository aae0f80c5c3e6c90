# SPDX-License-Identifier: Apache-2.0
"""Counting zeros, for all sparsity algorithms."""

from __future__ import annotations

import pytest

from nncf.algorithms.sparsity_statistics import Zeros, collect, tensorboard


def test_all_parameters_of_the_model_count():
    """The model's level is over everything, the layers' level over what is sparsified."""
    sparse = [Zeros("a", (10, 10), 50), Zeros("b", (300,), 30)]
    others = [Zeros("a.bias", (10,), 10), Zeros("norm", (90,), 0)]
    found = collect(sparse, others)
    assert found.sparsity_level == pytest.approx(90 / 500)
    assert found.sparsity_level_for_layers == pytest.approx(80 / 400)
    levels = [(layer.name, layer.sparsity_level) for layer in found.sparsified_layers_summary]
    assert levels == [("a", 0.5), ("b", 0.1)]
    percentages = [layer.weight_percentage for layer in found.sparsified_layers_summary]
    assert percentages == [25.0, 75.0]


def test_nothing_to_count_has_level_zero():
    """A model without sparsified layers, or without parameters, has level 0 and prints."""
    assert collect([], []).sparsity_level == 0.0
    assert collect([], [Zeros("a", (4,), 1)]).sparsity_level == 0.25
    assert collect([], [Zeros("a", (4,), 1)]).sparsity_level_for_layers == 0.0
    assert collect([Zeros("a", (0, 3), 0)], []).sparsified_layers_summary[0].sparsity_level == 0.0
    assert "Sparsity level of the whole model" in collect([], []).to_str()


def test_tables_name_layers_and_levels():
    """The tables show each layer with shape, level and share of the weights."""
    text = collect([Zeros("net/conv", (2, 2), 1)], [Zeros("bias", (4,), 3)]).to_str()
    assert "| net/conv     | [2, 2]         | 0.250          | 100.000             |" in text
    assert "| Sparsity level of the whole model       | 0.500 |" in text


def test_tags_for_tensorboard_carry_the_algorithm():
    """The documented tags, with the algorithm's name in front."""
    model = collect([Zeros("a", (4,), 1)], [Zeros("b", (4,), 0)])
    assert tensorboard("some_sparsity", model, {"target_sparsity_level": 0.5}) == {
        "some_sparsity/sparsity_level_for_model": 0.125,
        "some_sparsity/sparsity_level_for_sparsified_layers": 0.25,
        "some_sparsity/target_sparsity_level": 0.5,
    }
