# SPDX-License-Identifier: Apache-2.0
"""Targets of the deployed file: the least rate that meets them, found by measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nncf
from nncf.config.accuracy_aware import TargetOptions
from nncf.errors import ConfigError
from nncf.training import create_accuracy_aware_training_loop
from nncf.training.target import least_rate, measure
from tests.training import models

BYTES = {"type": "size_bytes", "value": 1000}


def target(**changes: Any) -> TargetOptions:
    return TargetOptions.model_validate({**BYTES, **changes})


def test_bisection_finds_the_least_rate() -> None:
    """Within a hundredth of where the value falls below the target, with few measurements."""
    asked: list[float] = []

    def value_at(rate: float) -> float:
        asked.append(rate)
        return 2000 * (1 - rate)

    found = least_rate(target(), (0.0, 0.95), value_at)
    assert 0.5 <= found <= 0.51
    assert len(asked) <= 9
    assert least_rate(target(value=2000), (0.0, 0.95), value_at) == 0.0


def test_target_out_of_reach_names_the_nearest() -> None:
    """Where even the highest rate does not meet it."""
    with pytest.raises(
        ConfigError, match=r"the nearest is 1905 bytes, at the highest rate, 0\.950"
    ):
        least_rate(target(), (0.0, 0.95), lambda rate: 2000 - 100 * rate)


def run(folder: Path, algorithms: list[Any], wanted: dict[str, Any], **params: Any) -> Any:
    """Run the adaptive loop for a target; return the loop, the controller and epochs trained."""
    torch.set_num_threads(1)
    accuracy = models.trained()[1]
    torch.manual_seed(3)
    params = {"maximal_absolute_accuracy_degradation": 8.0, "target": wanted, **params}
    config = models.config(*algorithms, mode="adaptive_compression_level", **params)
    controller, model = models.compressed(config)
    loop = create_accuracy_aware_training_loop(config, controller, accuracy)
    epochs: list[int] = []

    def train(compression_ctrl: Any, model: Any, optimizer: Any, epoch: int) -> None:
        epochs.append(epoch)
        models.train_epoch(compression_ctrl, model, optimizer)

    loop.run(
        *(model, train, models.accuracy, models.optimizers(model, 3e-3)),
        log_dir=folder,
        resume=True,
    )
    return loop, controller, epochs


@pytest.mark.parametrize(("runtime", "share"), [("onnxruntime", 0.85), ("openvino", 0.95)])
def test_size_is_met_by_the_file(tmp_path: Path, runtime: str, share: float) -> None:
    """Filters are removed until the file is small enough; the goal is met at that rate."""
    _, untouched, _ = run(
        tmp_path / "whole", [models.PRUNING, models.QUANTIZATION], {**BYTES, "value": 1e6}
    )
    wanted = target(runtime=runtime, value=1)
    size = share * measure(untouched, wanted)
    loop, controller, _ = run(
        *(tmp_path / "small", [models.PRUNING, models.QUANTIZATION]),
        {"type": "size_bytes", "value": size, "runtime": runtime},
    )
    assert loop.statistics.met
    assert 0.05 < loop.statistics.compression_rate < 0.9
    assert measure(controller, wanted) <= size


def test_target_that_is_met_already(tmp_path: Path) -> None:
    """Nothing is removed, and a model that is good enough is not trained."""
    loop, _, epochs = run(tmp_path, [models.BITS], {**BYTES, "value": 1e6})
    assert loop.statistics.compression_rate == pytest.approx(0.0, abs=1e-6)
    assert loop.statistics.finished == "the target and the goal are met"
    assert epochs == []


def test_fewer_bits_make_a_smaller_file() -> None:
    """What a rate of bits saves is measured in the file."""
    wide = nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    )
    config = nncf.NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 64]},
            "target_device": "TRIAL",
            "compression": {"algorithm": "quantization", "weights": {"adaptive_bits": [8, 4]}},
        }
    )
    nncf.register_default_init_args(config, [(torch.rand(64, 64), torch.zeros(64))])
    controller, _ = nncf.create_compressed_model(wide, config, dump_graphs=False)
    sizes = []
    for rate in (0.0, controller.maximal_compression_rate):
        controller.compression_rate = rate
        sizes.append(measure(controller, target()))
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("algorithm", [models.BITS, models.PRUNING, models.MAGNITUDE])
def test_measuring_leaves_the_model_as_it_was(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    """After a target out of reach was refused: values, state of compression and answers."""
    torch.set_num_threads(1)
    wanted = {"maximal_absolute_accuracy_degradation": 8.0, "target": BYTES}
    config = models.config(algorithm, mode="adaptive_compression_level", **wanted)
    controller, model = models.compressed(config)
    loop = create_accuracy_aware_training_loop(config, controller, models.trained()[1])
    values = {name: value.clone() for name, value in model.state_dict().items()}
    state, images = controller.get_compression_state(), models.data()[1].tensors[0]
    answer = model.eval()(images)
    with pytest.raises(ConfigError, match="cannot be reached"):
        loop.run(model, models.train_epoch, models.accuracy, log_dir=tmp_path)
    assert model.state_dict().keys() == values.keys()
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert controller.get_compression_state()["builder_state"] == state["builder_state"]
    assert controller.get_compression_state()["ctrl_state"].keys() == state["ctrl_state"].keys()
    assert torch.equal(model.eval()(images), answer)


def test_zeros_do_not_make_a_file_smaller(tmp_path: Path) -> None:
    """A size that sparsity cannot give is refused before any training, and the model stays."""
    with pytest.raises(ConfigError, match="zeros do neither"):
        run(tmp_path, [models.MAGNITUDE], {**BYTES, "value": 1000})


def test_latency_is_measured(tmp_path: Path) -> None:
    """In either runtime a call takes some time, and a target of an hour is met by any model."""
    wanted = {"type": "latency_ms", "value": 3.6e6}
    loop, controller, _ = run(tmp_path, [models.PRUNING, models.QUANTIZATION], wanted)
    assert loop.statistics.finished == "the target and the goal are met"
    for runtime in ("onnxruntime", "openvino"):
        found = measure(controller, target(type="latency_ms", runtime=runtime))
        assert 0 < found < 1000


def test_run_for_a_target_goes_on(tmp_path: Path) -> None:
    """A run that has ended comes back with its rate, without measuring again."""
    first, controller, _ = run(
        tmp_path, [models.PRUNING, models.QUANTIZATION], {**BYTES, "value": 12000}
    )
    again, same, epochs = run(
        tmp_path, [models.PRUNING, models.QUANTIZATION], {**BYTES, "value": 12000}
    )
    assert epochs == []
    assert again.statistics.compression_rate == first.statistics.compression_rate
    assert same.compression_rate == controller.compression_rate
