# SPDX-License-Identifier: Apache-2.0
"""The rows of the contract suite: every algorithm on every backend, one row or more each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf.resources import NNCFDataLoader
from tests.contract.models import EXAMPLES, Example, Inputs


@dataclass(frozen=True)
class Case:
    """A configuration to hold to the contract.

    ``compression`` is the section of the configuration, ``models`` the examples it is held to,
    the first in every test. ``stages`` are the compression stages after 0, 1, 2… epochs.
    ``exact_strip`` is False where strip makes sums shorter, which may change their last bits.
    ``before`` and ``after`` are whole sections of other algorithms in one list with it;
    ``reads_data`` is False where creation runs the model over no data, ``adds_state`` where the
    state dict gets no keys, ``device`` is the configuration's ``target_device``.
    """

    name: str
    algorithm: str
    backend: str
    compression: Mapping[str, Any]
    models: tuple[str, ...]
    stages: tuple[int, ...]
    exact_strip: bool = True
    before: tuple[Mapping[str, Any], ...] = ()
    after: tuple[Mapping[str, Any], ...] = ()
    reads_data: bool = True
    adds_state: bool = True
    device: str = "ANY"


DENSE = tuple(name for name in EXAMPLES if name != "sparse")
CONVOLUTIONAL = ("residual", "shared", "named")
GROWING = {"sparsity_target": 0.6, "sparsity_target_epoch": 2, "sparsity_freeze_epoch": 3}
# The factor lets the one step of ``trained`` drop some weights and not others.
LEARNED = {"compression_lr_multiplier": 2e5, "params": {**GROWING, "sparsity_target": 0.05}}

CASES = (
    Case("int8", "quantization", "torch", {}, DENSE, (2, 2, 2)),
    Case(
        "asymmetric, logarithmic",
        "quantization",
        "torch",
        {
            "weights": {"mode": "asymmetric", "per_channel": True, "logarithm_scale": True},
            "activations": {"mode": "asymmetric", "per_channel": False},
            "overflow_fix": "disable",
        },
        ("residual", "transformer"),
        (2, 2, 2),
    ),
    Case(
        "mixed widths",
        "quantization",
        "torch",
        {
            "initializer": {
                "precision": {"bitwidth_per_scope": [[4, "{re}(conv2d|linear)_0|WEIGHT"]]}
            }
        },
        ("residual", "transformer"),
        (2, 2, 2),
        device="TRIAL",
    ),
    Case(
        "staged",
        "quantization",
        "torch",
        {"params": {"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 2}},
        ("residual",),
        (0, 1, 2),
    ),
    Case(
        "pruning",
        "filter_pruning",
        "torch",
        {
            "params": {
                "pruning_target": 0.5,
                "pruning_steps": 3,
                "channel_multiple": 2,
                "prune_first_conv": True,
                "all_weights": True,
            }
        },
        ("residual", "shared", "transformer"),
        (0, 1, 2),
        reads_data=False,
        exact_strip=False,
    ),
    Case(
        "pruning and int8",
        "filter_pruning",
        "torch",
        {
            "pruning_init": 0.25,
            "params": {
                "pruning_target": 0.5,
                "pruning_steps": 3,
                "channel_multiple": 2,
                "prune_first_conv": True,
            },
        },
        ("residual", "transformer"),
        (1, 1, 2),
        after=({"algorithm": "quantization"},),
        exact_strip=False,
    ),
    Case(
        "pruning, magnitude and int8",
        "filter_pruning",
        "torch",
        {"params": {"schedule": "baseline", "channel_multiple": 2, "prune_first_conv": True}},
        ("residual",),
        (1, 1, 2),
        before=({"algorithm": "magnitude_sparsity", "params": GROWING},),
        after=({"algorithm": "quantization"},),
        exact_strip=False,
    ),
    Case(
        "magnitude",
        "magnitude_sparsity",
        "torch",
        {"params": {"update_per_optimizer_step": True, **GROWING}},
        DENSE,
        (0, 1, 2),
        reads_data=False,
    ),
    Case(
        "magnitude, 2 of 4",
        "magnitude_sparsity",
        "torch",
        {"params": {"pattern": "2:4", "sparsity_target_epoch": 2, "weight_importance": "abs"}},
        ("residual", "transformer"),
        (0, 1, 2),
        reads_data=False,
    ),
    Case(
        "magnitude and int8",
        "magnitude_sparsity",
        "torch",
        {"sparsity_init": 0.3, "params": {"schedule": "exponential", **GROWING}},
        ("residual", "shared", "transformer"),
        (1, 1, 2),
        after=({"algorithm": "quantization"},),
    ),
    Case(
        "const",
        "const_sparsity",
        "torch",
        {},
        ("sparse", "shared", "named"),
        (2, 2, 2),
        reads_data=False,
    ),
    Case(
        "const and int8",
        "const_sparsity",
        "torch",
        {},
        ("sparse",),
        (2, 2, 2),
        after=({"algorithm": "quantization"},),
    ),
    Case(
        "distillation",
        "knowledge_distillation",
        "torch",
        {"type": "softmax", "temperature": 2},
        # Not the transformer: plain, it has other bits in PyTorch's fast path, without gradients.
        ("residual", "shared", "named", "recurrent", "branching"),
        (2, 2, 2),
        reads_data=False,
        adds_state=False,
    ),
    Case(
        "distillation of features, int8",
        "knowledge_distillation",
        "torch",
        {"type": "mse", "features": ["{re}/(conv2d|linear)_0$"]},
        ("residual", "transformer"),
        (2, 2, 2),
        after=({"algorithm": "quantization"},),
    ),
    Case("rb", "rb_sparsity", "torch", LEARNED, DENSE, (0, 1, 2), reads_data=False),
    Case("xnor", "binarization", "torch", {}, CONVOLUTIONAL, (2, 2, 2)),
    Case(
        "dorefa, staged",
        "binarization",
        "torch",
        {
            "mode": "dorefa",
            "params": {"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 2},
        },
        ("residual", "shared"),
        (0, 1, 2),
    ),
    Case(
        "xnor and int8",
        "binarization",
        "torch",
        {"ignored_scopes": ["{re}\\[stem\\]"]},
        ("residual", "shared"),
        (2, 2, 2),
        after=({"algorithm": "quantization"},),
    ),
    Case(
        "rb and int8",
        "rb_sparsity",
        "torch",
        LEARNED,
        ("residual", "shared", "transformer"),
        (1, 1, 2),
        before=({"algorithm": "quantization"},),
    ),
)

BY_NAME = {case.name: case for case in CASES}

PAIRS = [
    pytest.param(case, EXAMPLES[name], id=f"{case.name}-{name}")
    for case in CASES
    for name in case.models
]
FIRST = [pytest.param(case, EXAMPLES[case.models[0]], id=case.name) for case in CASES]
STATIC = [pair for pair in PAIRS if pair.values[1] is not EXAMPLES["branching"]]
every_pair = pytest.mark.parametrize(("case", "example"), PAIRS)
every_case = pytest.mark.parametrize(("case", "example"), FIRST)
every_static_pair = pytest.mark.parametrize(("case", "example"), STATIC)


class Batches(NNCFDataLoader):
    """Three batches of an example, always the same."""

    batch_size = 4

    def __init__(self, example: Example) -> None:
        self.example = example

    def __iter__(self) -> Iterator[Inputs]:
        return (self.example.batch(seed) for seed in (100, 101, 102))


def config_of(case: Case, example: Example) -> nncf.NNCFConfig:
    """Return the configuration of a case for an example, with data registered."""
    section = {"algorithm": case.algorithm, **case.compression}
    sections = [*case.before, section, *case.after]
    text = {
        "input_info": example.input_info,
        "target_device": case.device,
        "compression": sections if len(sections) > 1 else section,
    }
    return nncf.register_default_init_args(nncf.NNCFConfig.from_dict(text), Batches(example))


def compress(
    case: Case, example: Example, state: Any = None, *, seed: int = 0
) -> tuple[Any, nn.Module]:
    """Return ``(controller, model)`` of a fresh instance of the example."""
    model = example.fresh(seed)
    found: tuple[Any, nn.Module] = nncf.create_compressed_model(
        model, config_of(case, example), compression_state=state, dump_graphs=False
    )
    return found


def trained(case: Case, example: Example) -> tuple[Any, nn.Module]:
    """Return a compressed model at the end of its schedule, its state moved by one step."""
    controller, model = compress(case, example)
    for _ in case.stages:
        controller.scheduler.epoch_step()
    controller.scheduler.step()
    args, kwargs = example.batch(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    from tests.contract.models import logits

    (logits(model(*args, **kwargs)).square().sum() + controller.loss()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return controller, model
