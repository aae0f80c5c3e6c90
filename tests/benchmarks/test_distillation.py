# SPDX-License-Identifier: Apache-2.0
"""The distillation benchmarks: every variant runs and is reported."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.networks import CifarResNet


@pytest.mark.slow
def test_a_run_reports_every_variant(tmp_path, capsys):
    """A tiny CIFAR-10 folder gives a row for both networks and all variants, and the JSON."""
    pytest.importorskip("PIL.Image", reason="this benchmark reads images with Pillow")
    from benchmarks import distillation_cifar10
    from tests.benchmarks.test_accuracy import archive

    names = [f"{label}/{index:04d}.jpg" for label in ("bird", "cat") for index in range(8)]
    archive(tmp_path / "cifar10_jpeg" / "train.zip", names, 32)
    archive(tmp_path / "cifar10_jpeg" / "test_some.zip", names, 32)
    folder = tmp_path / "cifar10_resnet_weights"
    folder.mkdir()
    for depth in (20, 56):
        state = CifarResNet((depth - 2) // 6).state_dict()
        named = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
        torch.save(named, folder / f"resnet{depth}-made-up.th")
    output = tmp_path / "result.json"
    arguments = f"--data {tmp_path} --output {output} --images 8 --batch 4 --seeds 1 --epochs 1"
    distillation_cifar10.main([*arguments.split(), "--baseline-epochs", "1", "--threads", "1"])
    (found,) = json.loads(output.read_text())["runs"]
    variants = [variant.name for variant in distillation_cifar10.variants((3, 3))]
    assert list(found) == ["seed", "teacher", "student", *variants]
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in ("teacher", *variants))


@pytest.mark.slow
def test_a_run_on_digits_reports_every_variant(tmp_path, capsys):
    """One rate and one seed give a row for each way to weigh the losses, and the JSON."""
    from benchmarks import distillation_digits

    output = tmp_path / "digits.json"
    options = "--seeds 1 --epochs 1 --rates 0.02 --activations 8 --threads 1"
    distillation_digits.main([*options.split(), "--output", str(output)])
    records = json.loads(output.read_text())["records"]
    assert [record["losses"] for record in records] == list(distillation_digits.WEIGHTS)
    assert all(50 < record[name][0] <= 100 for record in records for name in ("none", "T=1"))
    assert "| T=5, no limit |" in capsys.readouterr().out
