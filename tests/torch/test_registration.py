# SPDX-License-Identifier: Apache-2.0
"""``register_module``: which parameters of an own module are compressed, how, by whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nncf


def layout_of(*modules: nn.Module, width: int = 8) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(*modules)
    config = nncf.NNCFConfig.from_dict(
        {"input_info": {"sample_size": [1, width]}, "compression": {"algorithm": "quantization"}}
    )
    batches = [(torch.rand(4, width), torch.zeros(4)) for _ in range(2)]
    config = nncf.register_default_init_args(config, batches)
    controller, model = nncf.create_compressed_model(model, config, dump_graphs=False)
    model.eval()
    x = torch.rand(4, width)
    assert torch.equal(controller.strip()(x), model(x))
    return model.compression.layout


def weights(layout: Any) -> dict[str, Any]:
    return {insert.name: insert for insert in layout if insert.op.weight}


class Projections(nn.Module):
    """Two weights in functional calls, a gain that is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(6, 8) / 3)
        self.outer = nn.Parameter(torch.randn(6, 4) / 3)
        self.gain = nn.Parameter(torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(F.linear(x, self.inner), self.outer) * self.gain


def registered(*fields: str, **options: Any) -> type[nn.Module]:
    return nncf.register_module(*fields, **options)(type("Own", (Projections,), {}))


def test_unregistered_module_has_its_weights_compressed() -> None:
    """Weights of functional calls are found without any registration."""
    assert [*weights(layout_of(Projections()))] == [
        "Sequential/Projections[0]/linear_0|WEIGHT",
        "Sequential/Projections[0]/matmul_0|WEIGHT",
    ]


def test_only_named_fields_are_compressed() -> None:
    """Names given to the decorator are the parameters that are compressed."""
    assert [*weights(layout_of(registered("inner")()))] == ["Sequential/Own[0]/linear_0|WEIGHT"]


def test_named_field_of_any_operation_is_compressed() -> None:
    """A field that an elementwise product takes is a weight once it is named."""
    found = weights(layout_of(registered("gain", "inner")()))
    assert [*found] == ["Sequential/Own[0]/linear_0|WEIGHT", "Sequential/Own[0]/__mul___0|WEIGHT"]


def test_ignoring_algorithm_leaves_the_module_alone() -> None:
    """An algorithm in ignored_algorithms compresses no weight of the module, only of others."""
    found = layout_of(registered(ignored_algorithms=["quantization"])(), nn.Linear(4, 3))
    assert [*weights(found)] == ["Sequential/Linear[1]/linear_0|WEIGHT"]
    assert any("Own[0]/linear_0" in skip.address for skip in found.skipped)


def test_other_algorithms_are_not_kept_out() -> None:
    """ignored_algorithms means these algorithms only."""
    assert len(weights(layout_of(registered(ignored_algorithms=["rb_sparsity"])()))) == 2


@pytest.mark.parametrize(("axis", "shape"), [(None, (1, 4)), (0, (6, 1)), (-1, (1, 4))])
def test_axis_of_channels(axis: int | None, shape: tuple[int, ...]) -> None:
    """Ranges lie along the axis that was registered, else along the operation's own."""
    own = registered("outer", target_weight_dim_for_compression=axis)
    assert weights(layout_of(own()))["Sequential/Own[0]/matmul_0|WEIGHT"].shape == shape


def test_registration_is_inherited() -> None:
    """A subclass of a registered class is registered like it."""
    child = type("Child", (registered("inner"),), {})
    assert [*weights(layout_of(child()))] == ["Sequential/Child[0]/linear_0|WEIGHT"]


def test_wrong_uses_are_refused() -> None:
    """Something else than a module's class, or an unknown algorithm: an error that says so."""
    with pytest.raises(nncf.ModelError, match="above the class"):
        nncf.register_module()(lambda x: x)
    with pytest.raises(nncf.ConfigError, match="quantization"):
        nncf.register_module(ignored_algorithms=["quantisation"])
