# SPDX-License-Identifier: Apache-2.0
"""What the specification's text says of sparsity, where it has no block of its own."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from torch import nn

import nncf
from nncf.compression.statistics import prepare_for_tensorboard
from tests.documents.test_specification import CONFIG, LeNet


def sparse_lenet(*further: Any, **section: Any) -> tuple[Any, nn.Module]:
    """Return LeNet under magnitude sparsity, and other algorithms if any."""
    sections = [{"algorithm": "magnitude_sparsity", **section}, *further]
    config = nncf.NNCFConfig.from_dict({**CONFIG, "compression": sections})
    found: tuple[Any, nn.Module] = nncf.create_compressed_model(LeNet(), config)
    return found


def test_stages_of_a_checkpoint() -> None:
    """Uncompressed at rate zero, partial with 30 % of 51 %, full at the target, and not before."""
    levels = {"multistep_steps": [1, 2], "multistep_sparsity_levels": [0, 0.3, 0.51]}
    controller, _ = sparse_lenet(params={"schedule": "multistep", **levels})
    found = []
    for _ in range(3):
        controller.scheduler.epoch_step()
        layers = controller.statistics().magnitude_sparsity.model_statistics
        found.append(
            (
                round(layers.sparsity_level_for_layers, 2),
                controller.compression_stage().name,
            )
        )
    assert found == [
        (0.0, "UNCOMPRESSED"),
        (0.3, "PARTIALLY_COMPRESSED"),
        (0.51, "FULLY_COMPRESSED"),
    ]


def test_sparsity_with_quantization_is_partial_until_both_are_done() -> None:
    """Algorithms together are as far as the one behind; each stays at hand through the controller."""
    params = {"sparsity_target": 0.5, "sparsity_target_epoch": 1}
    controller, _ = sparse_lenet({"algorithm": "quantization"}, params=params)
    controller.scheduler.epoch_step()
    assert controller.compression_stage().name == "PARTIALLY_COMPRESSED"
    controller.scheduler.epoch_step()
    assert controller.compression_stage().name == "FULLY_COMPRESSED"
    controller.freeze(False)
    controller.set_sparsity_level(0.75)
    names = [name for name, _ in controller.statistics()]
    assert names == ["magnitude_sparsity", "quantization"]
    drawn = prepare_for_tensorboard(controller.statistics())
    assert drawn["magnitude_sparsity/target_sparsity_level"] == 0.75
    assert drawn["magnitude_sparsity/sparsity_level_for_sparsified_layers"] == pytest.approx(
        0.75, abs=1e-4
    )


def test_sparse_models_export_with_standard_operations() -> None:
    """The ONNX file has ONNX's own operations only, and the zeros of non-salient weights."""
    controller, _ = sparse_lenet(sparsity_init=0.7)
    controller.export_model("sparse.onnx")
    model = onnx.load("sparse.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    arrays = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer]
    weights = [array for array in arrays if array.ndim > 1]
    assert sum(array.size for array in weights) == 6 * 25 + 96 * 25 + 256 * 120 + 1200
    assert sum((array == 0).sum() for array in weights) == int(0.7 * 34470)


def test_a_registered_module_is_sparsified() -> None:
    """The weight of a registered module becomes sparse before it takes part in the forward."""

    @nncf.register_module("weight")
    class MyModule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    config = {
        "input_info": {"sample_size": [1, 4]},
        "compression": {"algorithm": "magnitude_sparsity", "sparsity_init": 0.5},
    }
    _, model = nncf.create_compressed_model(MyModule(), config, dump_graphs=False)
    assert model(torch.ones(1, 4)).tolist() == [[0, 0, 1, 1]]
