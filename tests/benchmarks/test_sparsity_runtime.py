# SPDX-License-Identifier: Apache-2.0
"""The benchmark of zeros in runtimes puts the zeros where it says, and reports what it measures."""

from __future__ import annotations

import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from benchmarks import sparsity_runtime as benchmark  # noqa: E402 (needs the packages above)


@pytest.mark.parametrize("pattern", benchmark.LEVELS)
def test_levels_drop_the_smallest_weights(pattern):
    """Exactly the share of weights that a pattern names is zero, and these are the smallest."""
    weight = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    found = benchmark.with_zeros(weight, pattern)
    assert np.mean(found == 0) == pytest.approx(benchmark.LEVELS[pattern])
    assert np.abs(weight[found == 0]).max() <= np.abs(weight[found != 0]).min()
    assert np.array_equal(found[found != 0], weight[found != 0])


@pytest.mark.parametrize("axis", [0, 1])
def test_two_of_four_along_the_inputs(axis):
    """Of each four neighbours along the inputs the two smaller ones are zero."""
    weight = np.random.default_rng(0).integers(-128, 128, (8, 8, 3)).astype(np.int8)
    found = np.moveaxis(benchmark.with_zeros(weight, benchmark.TWO_OF_FOUR, axis), axis, -1)
    groups = np.abs(found.reshape(-1, 4).astype(int))
    before = np.abs(np.moveaxis(weight, axis, -1).reshape(-1, 4).astype(int))
    assert (groups > 0).sum(1).max() == 2
    assert np.array_equal(np.sort(groups)[:, 2:], np.sort(before)[:, 2:])


def test_patterns_that_change_nothing():
    """Dense files and layers whose inputs are no multiple of four stay as they are."""
    weight = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    for pattern in (benchmark.DENSE, benchmark.REMOVED, benchmark.TWO_OF_FOUR):
        assert np.array_equal(benchmark.with_zeros(weight, pattern), weight)


@pytest.mark.slow
def test_a_run_reports_every_file(tmp_path, monkeypatch, capsys):
    """A run on a small encoder times every file in every runtime and accounts for its size."""
    small = {"encoder": (lambda *, removed: small_layer(removed=removed), (16, 64))}
    monkeypatch.setattr(benchmark, "NETWORKS", small)
    output = tmp_path / "record.json"
    arguments = ["benchmark", "--networks", "encoder", "--seconds", "0.1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(output)])
    benchmark.main()
    record = json.loads(output.read_text())["results"]["encoder"]
    assert "sparse kernels" in capsys.readouterr().out
    counts = {
        title.split(" ")[0] + title[-4:]: len(rows)
        for title, rows in record["milliseconds"].items()
    }
    assert counts == {"OpenVINOFP32": 8, "OpenVINOINT8": 15, "ONNXFP32": 11, "ONNXINT8": 8}
    sizes = {row[0]: row[1:] for row in record["megabytes"]["FP32"]}
    assert set(sizes) == set(benchmark.PATTERNS)


def small_layer(*, removed):
    return benchmark.EncoderLayer(64, 1 if removed else 2, 64 if removed else 128)
