# SPDX-License-Identifier: Apache-2.0
"""Statistics of filter pruning: the documented attributes, tables and TensorBoard keys."""

from __future__ import annotations

import pytest

from nncf.common.utils.tensorboard import prepare_for_tensorboard
from tests.algorithms.filter_pruning.pruned import Residual, prune


def test_statistics_say_what_is_gone() -> None:
    """At the level 0.5 the attributes hold the costs before and after, by layer and in all."""
    controller = prune(Residual(), params={"pruning_target": 0.6})
    controller.set_pruning_level(0.5)
    found = controller.statistics().filter_pruning
    model = found.model_statistics
    assert found.prune_flops is False
    assert found.current_pruning_level == pytest.approx(40 / 88)
    assert found.target_pruning_level == 0.5
    assert model.filter_pruning_level == pytest.approx(40 / 88)
    assert model.params_pruning_level == 1 - model.current.parameters / model.full.parameters
    assert model.flops_pruning_level == 1 - model.current.flops / model.full.flops
    layers = {layer.name.split("/")[1]: layer for layer in model.pruned_layers_summary}
    assert list(layers) == ["Conv2d[stem]", "Conv2d[outer]", "Conv2d[inner]", "Conv2d[wide]"]
    inner = layers["Conv2d[inner]"]
    assert (inner.weight_shape, inner.mask_shape) == ((24, 16, 3, 3), (24,))
    assert inner.filter_pruning_level == pytest.approx(1 / 3)


def test_with_a_target_of_flops_the_levels_are_of_flops() -> None:
    """current_pruning_level is the share of FLOPs, target_pruning_level what was asked for."""
    controller = prune(Residual(), params={"pruning_flops_target": 0.6})
    controller.set_pruning_level(0.3)
    found = controller.statistics().filter_pruning
    assert found.prune_flops is True
    assert found.current_pruning_level == found.model_statistics.flops_pruning_level
    assert found.current_pruning_level == controller.compression_rate >= 0.3
    assert found.target_pruning_level == 0.3
    assert "FLOPs pruning level" in found.to_str()


def test_statistics_print_as_tables() -> None:
    """Every layer and each cost has its row, with significant digits, and the footer follows."""
    controller = prune(Residual())
    controller.set_pruning_level(0.5)
    text = controller.statistics().to_str()
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "| Residual/Conv2d[inner]/conv2d_0 | [24, 16, 3, 3] | [24] | 0.333 |" in rows
    assert "| Filters | 88 | 48 | 0.455 |" in rows
    assert any(row.startswith("| GFLOPs | 0.00153 | 0.000") for row in rows)
    assert rows[rows.index("| Filters | 88 | 48 | 0.455 |") + 2] == (
        "Prompt: statistic pruning level = 1 - statistic current / statistic full."
    )


def test_tensorboard_gets_the_documented_keys() -> None:
    """Four levels under their documented names."""
    controller = prune(Residual())
    controller.set_pruning_level(0.5)
    found = prepare_for_tensorboard(controller.statistics())
    model = controller.statistics().filter_pruning.model_statistics
    assert found == {
        "filter_pruning/algo_current_pruning_level": pytest.approx(40 / 88),
        "filter_pruning/model_FLOPS_pruning_level": model.flops_pruning_level,
        "filter_pruning/model_params_pruning_level": model.params_pruning_level,
        "filter_pruning/model_filters_pruning_level": model.filter_pruning_level,
    }
