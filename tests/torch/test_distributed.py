# SPDX-License-Identifier: Apache-2.0
"""Two processes, one model: what rank 0 found holds for all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from nncf.torch.distributed import agree, from_main, is_main_process, together

HEADER = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.torch import FakeQuantizer
from nncf.compression.calibration import Calibration
from nncf.errors import DataError
from nncf.torch.distributed import agree, from_main, is_main_process, together
from nncf.torch.initialize import adapt_batch_norm, initialize_ranges

dist.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2)
rank = dist.get_rank()
"""


# gloo's threads may abort a process whose interpreter is torn down under them.
FOOTER = """
dist.barrier()
sys.stdout.flush()
os._exit(0)
"""


def two_processes(code: str) -> list[str]:
    """Run code in two gloo processes and return what each prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    room = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    script = HEADER + textwrap.dedent(code) + FOOTER
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank)],
            env=room,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    done = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], [error for _, error in done]
    return [output.strip() for output, _ in done]


def test_ranges_and_norms_agree_after_different_data() -> None:
    """Ranks that saw different data have rank 0's ranges, signs, flags and statistics."""
    left, right = two_processes(
        """
        model = nn.Sequential(FakeQuantizer(Scheme()), nn.BatchNorm1d(3), FakeQuantizer(Scheme()))
        names = {"a": model[0], "b": model[2], "c": FakeQuantizer(Scheme())}
        model.add_module("unreached", names["c"])
        model.forward = lambda x: model[2](model[1](model[0](x)))
        x = torch.arange(6.0).reshape(2, 3) * (rank + 1) - 3 * rank
        initialize_ranges(model, names, {n: Calibration(samples=2) for n in "abc"}, [(x, 0)])
        adapt_batch_norm(model, [(x, 0)], 2)
        names["b"].enabled = rank == 1
        agree(model)
        state = {k: v.tolist() for k, v in model.state_dict().items()}
        flags = [(quantizer.enabled, quantizer.initialized) for quantizer in names.values()]
        print(state, flags, is_main_process() == (rank == 0))
        """
    )
    assert left == right
    assert "'0.scale': [5.0]" in left
    assert left.endswith("[(True, True), (False, True), (False, False)] True")


def test_a_failure_on_one_rank_stops_all() -> None:
    """NaN in the data of rank 1 is an error on both, which names the rank."""
    left, right = two_processes(
        """
        model = nn.Sequential(FakeQuantizer(Scheme()))
        x = torch.ones(2, 3) if rank == 0 else torch.full((2, 3), float("nan"))
        try:
            initialize_ranges(model, {"a": model[0]}, {"a": Calibration(samples=2)}, [(x, 0)])
        except DataError as error:
            print(str(error).split(":")[0], model[0].initialized)
        """
    )
    assert left.startswith("Initialisation failed on rank 1")
    assert left.endswith("False")
    assert "Batch 0 of the calibration data" in right


def test_alone_there_is_nothing_to_agree_on() -> None:
    """Without a process group the functions do nothing and errors pass unchanged."""
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    agree(model)
    assert torch.equal(model.weight, before)
    assert is_main_process()
    with pytest.raises(KeyError), together():
        raise KeyError


def test_a_value_comes_from_the_main_process() -> None:
    """Every rank gets what rank 0 passed, and a single process gets back its own."""
    outputs = two_processes("print(from_main({'rank': rank, 'loss': 0.5 + rank}))")
    assert outputs == ["{'rank': 0, 'loss': 0.5}"] * 2
    assert from_main("alone") == "alone"
