# SPDX-License-Identifier: Apache-2.0
"""Binarization of models: which layers, first scales, stages, statistics, other algorithms."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf.common.utils.tensorboard import prepare_for_tensorboard
from nncf.config.structures import QuantizationRangeInitArgs

INNER = "Net/Conv2d[inner]/conv2d_0"
STAGES = {"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 2}
ENDS = ["{re}stem", "{re}head"]
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three convolutions, one of them transposed, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.second = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.second(self.inner(x)))
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


class Data(nncf.NNCFDataLoader):
    """Two batches of two samples, the second brighter."""

    batch_size = 2

    def __iter__(self) -> Iterator[Any]:
        yield (X,), {}
        yield (2 * X,), {}


def config(
    *others: dict[str, Any], data: bool = False, top: dict[str, Any] | None = None, **section: Any
) -> nncf.NNCFConfig:
    sections = [{"algorithm": "binarization", **section}, *others]
    text = {"input_info": {"sample_size": [1, 3, 8, 8]}, "compression": sections, **(top or {})}
    made = nncf.NNCFConfig.from_dict(text)
    if data:
        made.register_extra_structs([QuantizationRangeInitArgs(Data())])
    return made


def compressed(*others: dict[str, Any], **settings: Any) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    made = nncf.create_compressed_model(Net(), config(*others, **settings), dump_graphs=False)
    found: tuple[Any, nn.Module] = made
    return found


def placed(model: nn.Module) -> set[str]:
    return {insert.name.removesuffix("|BINARY") for insert in model.compression.layout}


def test_convolutions_are_binarized_and_nothing_else():
    """Linear and transposed layers stay, with the reason; scopes choose among the convolutions."""
    _, model = compressed()
    stem = INNER.replace("inner", "stem")
    assert placed(model) == {f"{k}|{p}" for k in (stem, INNER) for p in ("WEIGHT", "INPUT0")}
    skipped = {skip.address: skip.reason for skip in model.compression.layout.skipped}
    assert skipped["Net/Linear[head]/linear_0|WEIGHT"] == "only convolutions are binarized"
    assert placed(compressed(ignored_scopes=["{re}stem"])[1]) == {
        f"{INNER}|WEIGHT",
        f"{INNER}|INPUT0",
    }
    only = compressed(target_scopes=[INNER])[1]
    assert placed(only) == {f"{INNER}|WEIGHT", f"{INNER}|INPUT0"}
    thresholds = model.compression.ops[f"{INNER}|INPUT0|BINARY"].logit_of_threshold
    assert thresholds.shape == (8, 1, 1)


@pytest.mark.parametrize(("mode", "magnitudes"), [("xnor", 16), ("dorefa", 1)])
def test_strip_leaves_weights_of_two_values(mode, magnitudes):
    """The stripped weight has one magnitude per channel or tensor; the outputs are the same bits."""
    controller, model = compressed(mode=mode)
    model(X).sum().backward()
    model.eval()
    stripped = controller.strip()
    assert torch.equal(stripped(X), model(X))
    assert len(stripped.inner.weight.abs().unique()) == magnitudes
    assert torch.equal(stripped.head.weight, model.head.weight)


def test_frozen_layers_are_refused():
    """A frozen convolution is an error that names it, and the model stays as it was."""
    model = Net()
    model.inner.weight.requires_grad_(False)
    with pytest.raises(nncf.ModelError, match=r"inner\.weight.*unfreeze"):
        nncf.create_compressed_model(model, config(), dump_graphs=False)
    assert not hasattr(model, "compression")
    nncf.create_compressed_model(model, config(ignored_scopes=[INNER]), dump_graphs=False)


def test_scales_come_from_the_registered_data():
    """The scale has the least error on what the layer gets from all batches in floating point."""
    controller, _ = compressed(data=True)
    torch.manual_seed(0)
    float_model = Net().eval()
    seen = torch.cat([torch.relu(float_model.norm(float_model.stem(x))) for x in (X, 2 * X)])
    op = controller.activation_binarizers[f"{INNER}|INPUT0|BINARY"]
    assert op.initialized
    seen = seen.detach().flatten()

    def error(scale: float) -> float:
        return float((seen - torch.where(seen > scale / 2, scale, 0.0)).square().sum())

    best = min(error(k / 100 * float(seen.max())) for k in range(1, 101))
    assert error(float(op.scale())) <= 1.01 * best
    assert float(op.scale()) < 0.8 * float(seen.max())


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"type": "min_max"}, 2.0),
        ({"type": "mixed_min_max"}, 1.5),
        ({"type": "mean_percentile"}, 1.5),
        ({"type": "mean_min_max"}, 1.5),
        ({"type": "percentile", "params": {"max_percentile": 50}}, None),
        ({"type": "min_max", "num_init_samples": 2}, 1.0),
    ],
    ids=str,
)
def test_the_range_section_chooses_the_statistic(section, expected):
    """Samples and type of ``initializer.range`` decide about the first scale."""
    controller, _ = compressed(data=True, initializer={"range": section})
    name = f"{INNER.replace('inner', 'stem')}|INPUT0|BINARY"
    scale = float(controller.activation_binarizers[name].scale())
    top = float(X.max())
    if expected is None:
        assert scale == pytest.approx(float(torch.cat([X, 2 * X]).quantile(0.5)), rel=1e-3)
    else:
        assert scale == pytest.approx(expected * top, rel=0.02)


def test_without_data_the_first_training_step_decides():
    """Nothing is registered: scales wait for the first training forward, which sets them all."""
    controller, model = compressed()
    ops = controller.activation_binarizers.values()
    assert not any(op.initialized for op in ops)
    model.eval()(X)
    assert not any(op.initialized for op in ops)
    model.train()(X)
    assert all(op.initialized and float(op.from_data) == 1 for op in ops)
    with pytest.raises(nncf.DataError, match="no data loader"):
        compressed(initializer={"range": {"num_init_samples": 4}})


def test_sections_without_a_meaning_here(caplog):
    """A list of ranges is refused, bit widths are told to have no effect."""
    with pytest.raises(nncf.ConfigError, match="expected one object"):
        config(initializer={"range": [{"target_scopes": "x"}]})
    with caplog.at_level(logging.WARNING, logger="nncf"):
        config(initializer={"precision": {"type": "manual"}})
    assert "one bit" in caplog.text


@pytest.mark.parametrize("data", [True, False])
def test_stages(data):
    """Activations, then weights are switched on by epoch, and scales found anew at each change."""
    controller, model = compressed(data=data, params=STAGES)
    activations = controller.activation_binarizers.values()
    plain = copy.deepcopy(model.state_dict())
    stages, flags = [], []
    for _ in range(3):
        controller.scheduler.epoch_step()
        stages.append(int(controller.compression_stage()))
        flags.append(
            (
                all(op.enabled for op in controller.weight_binarizers.values()),
                all(op.enabled for op in activations),
            )
        )
        assert all(op.initialized == data for op in activations)
        model.train()(X)
    assert stages == [0, 1, 2]
    assert flags == [(False, False), (False, True), (True, True)]
    assert all(op.initialized for op in activations)
    assert torch.equal(plain["inner.weight"], model.inner.weight)


def test_learning_rate_multiplier():
    """The algorithm's factor wins over the top level's; it scales gradients of what is learned."""
    grads = []
    for top, own in ((None, None), (3.0, None), (3.0, 0.5)):
        settings = {} if own is None else {"compression_lr_multiplier": own}
        controller, model = compressed(
            top={} if top is None else {"compression_lr_multiplier": top}, **settings
        )
        model.train()(X).square().sum().backward()
        op = controller.activation_binarizers[f"{INNER}|INPUT0|BINARY"]
        grads.append(op.logit_of_threshold.grad)
        weight = model.inner.weight.grad
    assert torch.allclose(grads[1], 3 * grads[0])
    assert torch.allclose(grads[2], 0.5 * grads[0])
    assert float(weight.abs().sum()) > 0


def test_statistics_count_operations(caplog):
    """MACs by layer as by hand; the table is logged at creation; numbers for TensorBoard."""
    with caplog.at_level(logging.INFO, logger="nncf"):
        controller, _ = compressed(ignored_scopes=["{re}stem"], params=STAGES)
    assert "MAC share" in caplog.text
    before = controller.statistics().binarization
    assert before.binarized_flops == 0
    assert [layer.state for layer in before.layers] == ["N", "not yet", "N", "N"]
    for _ in range(2):
        controller.scheduler.epoch_step()
    assert controller.statistics().binarization.layers[1].state == "activations only"
    controller.scheduler.epoch_step()
    found = controller.statistics().binarization
    macs = {layer.name: layer.macs for layer in found.layers}
    expected = {"stem": 64 * 8 * 3 * 9, "inner": 64 * 16 * 8 * 9, "up": 64 * 16 * 8 * 4, "head": 40}
    assert {k.split("[")[1].split("]")[0]: v for k, v in macs.items()} == expected
    share = expected["inner"] / sum(expected.values())
    assert found.binarized_flops_share == pytest.approx(share)
    assert found.layers[1].layer_type == "Conv2d"
    assert f"{100 * share:.2f} %" in found.to_str()
    drawn = prepare_for_tensorboard(controller.statistics())
    assert drawn["binarization/binarized_flops_share"] == pytest.approx(share)
    assert drawn["binarization/ratio_of_enabled_weights"] == 1


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_quantization_takes_the_rest(first):
    """Quantizers stand at the first and last layer; the binarized convolution is left alone."""
    sections = [
        {"algorithm": "binarization", "ignored_scopes": ENDS},
        {"algorithm": "quantization"},
    ]
    text = {"input_info": {"sample_size": [1, 3, 8, 8]}}
    text["compression"] = sections if first else sections[::-1]
    made = nncf.NNCFConfig.from_dict(text)
    made.register_extra_structs([QuantizationRangeInitArgs(Data())])
    torch.manual_seed(0)
    controller, model = nncf.create_compressed_model(Net(), made, dump_graphs=False)
    points = {
        p for i in model.compression.layout if not i.name.endswith("BINARY") for p in i.points
    }
    assert not {p for p in points if p.address == INNER and p.kind != "output"}
    assert {p.address for p in points if p.kind == "weight"} == {
        "Net/Conv2d[stem]/conv2d_0", "Net/ConvTranspose2d[up]/conv_transpose2d_0",
        "Net/Linear[head]/linear_0",
    }  # fmt: skip
    names = [child.name for child in controller.child_ctrls]
    assert names == [section["algorithm"] for section in text["compression"]]
    left = controller.statistics().quantization.unreached
    assert not [skip for skip in left if skip.address.startswith(INNER)]
    # the last layer's range is that of the binarized network
    op = model.compression.ops["Net/mean_0|OUTPUT"]
    seen = []
    handle = op.register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().max()))
    model.eval()(2 * X)
    handle.remove()
    assert float(op.scale) > 0.5 * float(max(seen))


@pytest.mark.parametrize("name", ["magnitude_sparsity", "rb_sparsity"])
def test_sparsity_must_stay_out_of_binarized_layers(name):
    """Zeros that a sign would undo are refused before the model is touched; elsewhere they train."""
    model = Net()
    with pytest.raises(nncf.ConfigError, match=r"inner.*ignored_scopes"):
        nncf.create_compressed_model(model, config({"algorithm": name}), dump_graphs=False)
    assert not hasattr(model, "compression")
    other = {"algorithm": name, "target_scopes": ["{re}head"], "sparsity_init": 0.5}
    controller, model = compressed(other, ignored_scopes=["{re}head"])
    model.train()(X).sum().backward()
    assert controller.statistics().binarization is not None
    stripped = controller.strip()
    assert len(stripped.inner.weight.abs().unique()) == 16


@pytest.mark.parametrize("mode", ["xnor", "dorefa"])
def test_pruned_channels_leave_two_values(mode):
    """Pruned filters count nowhere: the small network computes what the masked one does."""
    pruning = {
        "algorithm": "filter_pruning",
        "pruning_init": 0.5,
        "params": {"schedule": "baseline", "prune_first_conv": True, "channel_multiple": 2},
    }
    controller, model = compressed(pruning, mode=mode)
    controller.scheduler.epoch_step()
    model.train()(X).sum().backward()
    model.eval()
    stripped = controller.strip()
    assert stripped.inner.weight.shape[0] < 16
    assert torch.allclose(stripped(X), model(X), atol=1e-5)
    channels = len(stripped.inner.weight) if mode == "xnor" else 1
    assert len(stripped.inner.weight.abs().unique()) == channels


class Read(nn.Module):
    """Its weight goes into a convolution and, as it is, into a sum; another one is standardised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.filters = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x)) + self.conv.weight.abs().sum()
        return nn.functional.conv2d(x, self.filters - self.filters.mean())


def test_weights_that_others_read() -> None:
    """A weight read elsewhere keeps its values, and is binarized on its way into the convolution."""
    torch.manual_seed(0)
    controller, model = nncf.create_compressed_model(Read(), config(), dump_graphs=False)
    reasons = [skip.reason for skip in model.compression.layout.skipped]
    assert any("takes only weights that are parameters themselves" in reason for reason in reasons)
    model.train()(X).sum().backward()
    stripped = controller.strip()
    assert torch.equal(stripped.conv.weight, model.conv.weight)
    assert torch.equal(stripped.eval()(X), model.eval()(X))


RANKS = """
import sys, torch, torch.distributed as dist
import nncf
from tests.algorithms.binarization.test_binarization import Net, X, config

dist.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2, init_method=sys.argv[2])
nncf.disable_logging()
torch.manual_seed(0)
controller, model = nncf.create_compressed_model(Net(), config(), dump_graphs=False)
wrapped = torch.nn.parallel.DistributedDataParallel(model)
controller.distributed()
wrapped.train()((1 + 2 * dist.get_rank()) * X).sum().backward()
print([float(op.scale()) for op in controller.activation_binarizers.values()], flush=True)
dist.barrier()
"""


def test_first_scales_of_several_processes_agree(root: Path, tmp_path: Path) -> None:
    """Without registered data each process sees its own first batch; all take the mean scale."""
    where = (tmp_path / "meeting").as_uri()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(rank), where],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    done = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], [error for _, error in done]
    scales = [json.loads(output) for output, _ in done]
    assert scales[0] == scales[1]
    assert scales[0][0] == pytest.approx(2 * float(X.max()), rel=0.02)
