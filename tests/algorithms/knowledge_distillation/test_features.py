# SPDX-License-Identifier: Apache-2.0
"""Activations inside are compared, and let go."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode

import nncf
from nncf.algorithms.knowledge_distillation import KnowledgeDistillationOptions
from nncf.algorithms.knowledge_distillation.torch import (
    mse_loss,
    normalized_mse_loss,
)
from tests.algorithms.knowledge_distillation.students import (
    Small,
    config,
    distilled,
    hook_counts,
    images,
)

INT8 = {"algorithm": "quantization"}


def test_features_are_compared() -> None:
    """Activations of the named operations add their terms, each as it says."""
    torch.manual_seed(1)
    teacher = Small()
    features = ["Small/Conv2d[conv]",
                {"scope": "{re}relu", "teacher_scope": "Small/relu_0", "type": "mse", "scale": 2}]  # fmt: skip
    controller, model = distilled(Small(), type="mse", features=features, teacher=teacher)
    teacher.eval()
    output = model(images())
    found = controller.loss()
    with torch.no_grad():
        ours, theirs = model.conv(images()), teacher.conv(images())
        batch = nn.functional.batch_norm(ours, None, None, model.norm.weight, model.norm.bias, True)
        expected = mse_loss(output, teacher(images())) + normalized_mse_loss(ours, theirs)
        expected += 2 * mse_loss(batch.relu(), teacher.norm(theirs).relu())
    assert torch.allclose(found, expected, rtol=1e-4)
    found.backward()
    assert model.conv.weight.grad.abs().sum() > 0


class InPlace(nn.Module):
    """Changes the result of its convolution in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu_(self.conv(x)).mean((2, 3)))


def test_a_feature_that_is_changed_in_place_is_compared_as_it_was() -> None:
    """What an operation computed counts, not what a later one wrote over it."""
    torch.manual_seed(1)
    teacher = InPlace()
    controller, model = distilled(
        InPlace(), type="mse", features=[{"scope": "{re}conv2d", "type": "mse"}], teacher=teacher
    )
    output = model(images())
    found = controller.loss()
    expected = mse_loss(output, teacher(images())) + mse_loss(
        model.conv(images()), teacher.conv(images())
    )
    assert torch.allclose(found, expected)
    found.backward()
    assert model.conv.weight.grad.isfinite().all()


def test_features_have_two_forms() -> None:
    """A scope alone, or a list of scopes and objects; the schema knows both."""
    one = config(features="a").options.compression[0].features
    many = config(features=["a", {"scope": "b", "scale": 2}]).options.compression[0].features
    assert [feature.scope for feature in one] == ["a"]
    assert [(feature.scope, feature.scale) for feature in many] == [("a", 1.0), ("b", 2.0)]
    schema = KnowledgeDistillationOptions.model_json_schema()["properties"]["features"]
    assert [form["type"] for form in schema["anyOf"]] == ["string", "array"]


def test_a_block_stands_for_what_it_computes_last() -> None:
    """A scope that matches several operations means the last one to run."""
    _, model = distilled(Small(), features="Small")
    (name,) = model.compression.ops
    assert name == "Small/Linear[head]/linear_0|OUTPUT|FEATURE"


def test_nothing_is_held_between_forwards() -> None:
    """Activations noted for the comparison are let go when the forward ends, also in a part."""
    controller, model = distilled(Small(), features=["{re}conv2d"])
    (tap,) = model.compression.ops.values()
    model(images())
    model.conv(images())
    assert tap.seen is None
    assert float(controller.loss().detach()) > 0


WRONG_FEATURES = {
    "nowhere": (["Small/Conv2d[cone]"], nncf.ScopeNotFound, r'features\[0\] "Small/Conv2d\[cone\]"'),
    "twice": (["{re}conv", "Small/Conv2d[conv]"], nncf.ConfigError, "are both Small/Conv2d"),
    "output": (["{re}output"], nncf.ConfigError, "no floating point tensor that the model goes on"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FEATURES)
def test_wrong_features_are_refused(name: str) -> None:
    """A scope without operation, one that is there twice and one without a tensor say what is wrong."""
    features, error, message = WRONG_FEATURES[name]
    model = Small()
    hooks = hook_counts(model)
    with pytest.raises(error, match=message):
        distilled(model, features=features)
    assert hook_counts(model) == hooks


def test_features_of_different_shapes_are_refused() -> None:
    """The error names both operations and both shapes, before training."""
    with pytest.raises(nncf.ConfigError, match=r"shape \(1, 6, 4, 4\), .* \(1, 12, 4, 4\)"):
        distilled(Small(), features=["{re}conv2d"], teacher=Small(width=12))


def test_features_inside_a_compressed_teacher_are_refused() -> None:
    """A compressed model may teach by its outputs, not by what is inside it."""
    _, teacher = distilled(Small(), INT8)
    with pytest.raises(nncf.ModelError, match=r"inside which no features can be compared"):
        distilled(Small(), features=["{re}conv2d"], teacher=teacher)
    assert _get_current_function_mode() is None  # neither the teacher's mode nor the capture's
    controller, model = distilled(Small(), teacher=teacher)
    model(images())
    assert float(controller.loss().detach()) > 0
