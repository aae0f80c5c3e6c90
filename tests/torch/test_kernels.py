# SPDX-License-Identifier: Apache-2.0
"""The fast paths: chosen rightly, prepared safely, left quietly where they cannot be had."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch.nn import functional as F

from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.torch import FakeQuantizer
from nncf.torch import compiler, kernels


@pytest.fixture(autouse=True)
def _as_on_a_fresh_start(monkeypatch):
    """Each test decides its way alone."""
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_made", {})
    yield
    kernels.use(None)


needs_compiler = pytest.mark.skipif(
    kernels.way_for(torch.ones(1)) != "native", reason="no C compiler on this machine"
)


def quantizer(*, low=-1.0, high=1.0):
    made = FakeQuantizer(Scheme(signed=True))
    made.set_range(torch.tensor(low), torch.tensor(high))
    return made


def step_of(made, x, weight, *, recompute):
    """Run quantizers, convolution and backward; return output and gradients."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    fine, coarse = made(x), made(weight)
    if recompute:
        with kernels.recompute_saved((fine, coarse, None)):
            out = F.conv2d(fine, coarse)
    else:
        out = F.conv2d(fine, coarse)
    made.zero_grad()
    out.square().sum().backward()
    return out.detach(), x.grad, weight.grad, made.scale.grad


@needs_compiler
def test_ways_are_chosen_by_variable_and_function(monkeypatch):
    """``use`` wins over the variable, the variable over ``auto``; nonsense is refused."""
    x = torch.ones(4)
    assert kernels.way_for(x) == "native"
    monkeypatch.setenv(kernels.VARIABLE, "eager")
    assert kernels.way_for(x) == "eager"
    kernels.use("native")
    assert kernels.way_for(x) == "native"
    with pytest.raises(ValueError, match="expected one of auto, eager"):
        kernels.use("fast")
    kernels.use(None)
    monkeypatch.setenv(kernels.VARIABLE, "fast")
    with pytest.raises(ValueError, match="NNCF_KERNELS=fast"):
        kernels.way_for(x)


def test_tracers_see_plain_operations():
    """What records operations never meets a compiled kernel."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert kernels.way_for(torch.ones(3)) == "eager"
    assert kernels.way_for(torch.ones(3, device="meta")) == "eager"
    seen = []

    def wrapped(x):
        seen.append(kernels.way_for(x))
        return x

    torch.func.vmap(wrapped)(torch.ones(2, 3))
    assert seen == ["eager"]
    assert quantizer().to("meta")(torch.ones(3, device="meta")).device.type == "meta"


def test_without_compiler_training_goes_on_with_one_line(monkeypatch, caplog):
    """Where no compiler is, results stay the same and one warning says so."""
    x = torch.randn(100)
    expected = quantizer()(x).detach()
    monkeypatch.setattr(kernels, "_made", {})
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING, logger="nncf"):
        logging.getLogger("nncf").propagate = True
        for _ in range(3):
            assert torch.equal(quantizer()(x), expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no C compiler" in caplog.text


@needs_compiler
def test_failing_kernels_fall_back_at_run_time(monkeypatch, caplog):
    """A kernel that fails in the middle of training is replaced, with one warning."""
    x = torch.randn(100, requires_grad=True)
    made = quantizer()
    made(x).sum().backward()
    expected = x.grad.clone()

    def fail(*arguments):
        raise RuntimeError("out of luck")

    broken = kernels._kernels("native")
    monkeypatch.setattr(type(broken), "quantize", fail)
    monkeypatch.setattr(type(broken), "gradient", fail)
    x.grad = None
    with caplog.at_level(logging.WARNING, logger="nncf"):
        logging.getLogger("nncf").propagate = True
        made(x).sum().backward()
        made(x)
    assert torch.equal(x.grad, expected)
    assert caplog.text.count("out of luck") == 1


@needs_compiler
def test_gradients_do_not_depend_on_threads():
    """Sums are formed in a fixed order, so any number of threads gives the same bits."""
    grads = []
    before = torch.get_num_threads()
    x = torch.randn(300_001)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made = FakeQuantizer(Scheme(signed=True))
            made.set_range(torch.tensor(-1.0), torch.tensor(1.0))
            made(x).square().sum().backward()
            grads.append(made.scale.grad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


@needs_compiler
def test_many_threads_may_start_at_once():
    """Threads that meet at the first use prepare the kernels once and all get results."""
    results, x = [], torch.randn(1000)
    made = quantizer()
    threads = [threading.Thread(target=lambda: results.append(made(x).detach())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(result, results[0]) for result in results)


@needs_compiler
def test_processes_share_one_built_library(tmp_path, monkeypatch):
    """Processes that build at the same time leave one library behind, and no rubbish."""
    code = (
        "import torch; from nncf.torch import kernels; "
        "assert kernels.way_for(torch.ones(1)) == 'native'"
    )
    environment = {**os.environ, compiler.CACHE_VARIABLE: str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list((tmp_path / "kernels").iterdir())) == 1


@needs_compiler
def test_damaged_library_is_built_anew(tmp_path, monkeypatch):
    """A library cut short on the disk does no harm."""
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    assert kernels.way_for(torch.ones(1)) == "native"
    (library,) = (tmp_path / "kernels").iterdir()
    library.unlink()  # not overwritten: it is loaded in this process
    library.write_bytes(b"\x7fELF")
    monkeypatch.setattr(kernels, "_made", {})
    assert kernels.way_for(torch.ones(1)) == "native"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_folder_that_others_can_write_is_refused(tmp_path, monkeypatch):
    """No library is loaded from where somebody else could have put it."""
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    with pytest.raises(PermissionError, match="writable by others"):
        compiler.cache_folder()


def test_import_builds_nothing(tmp_path):
    """Importing prepares nothing and starts no compiler."""
    code = (
        "import sys, nncf.algorithms.quantization.torch, nncf.torch.kernels as kernels; "
        "assert kernels._made == {}; assert 'torch._inductor' not in sys.modules"
    )
    environment = {**os.environ, compiler.CACHE_VARIABLE: str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["eager", "native"])
def test_recomputing_changes_no_bit(way):
    """Saving how operands were made gives the same outputs and gradients."""
    kernels.use(way)
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)
    made = quantizer()
    plain = step_of(made, x, weight, recompute=False)
    for mine, its in zip(step_of(made, x, weight, recompute=True), plain, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputing_frees_the_operand(recompute):
    """After the operation nothing holds the quantized tensor, which it would otherwise save."""
    made = quantizer()
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3, requires_grad=True)
    operand, coarse = made(x), made(weight)
    held = weakref.ref(operand)
    if recompute:
        with kernels.recompute_saved([operand, coarse]):
            out = F.conv2d(operand, coarse)
    else:
        out = F.conv2d(operand, coarse)
    del operand
    assert (held() is None) is recompute
    out.sum().backward()
    assert made.scale.grad.isfinite().all()


def test_recomputed_linear_and_two_backward_passes():
    """Views of operands (a linear's transposed weight) and retained graphs work too."""
    made = quantizer()
    x, weight = torch.randn(2, 5, 7), torch.randn(3, 7)
    grads = []
    for recompute in (False, True):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        fine, coarse = made(a), made(b)
        with kernels.recompute_saved((fine, coarse) if recompute else (torch.ones(2, 2),)):
            out = F.linear(fine, coarse, torch.ones(3, requires_grad=True))
        out.square().sum().backward(retain_graph=True)
        out.square().sum().backward()
        grads.append((a.grad, b.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_changes_in_place_are_noticed():
    """What was changed in place is an error or saved as it is, never wrong gradients."""
    made = quantizer()
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    x = torch.randn(2, 3, 9, 9, requires_grad=True) * 1.0
    fine, coarse = made(x), made(weight)
    with kernels.recompute_saved((fine, coarse)):
        out = F.conv2d(fine, coarse)
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="inplace operation"):
        out.sum().backward()

    fine = made(torch.randn(2, 3, 9, 9)).relu_()
    with kernels.recompute_saved((fine, made(weight))):
        out = F.conv2d(fine, made(weight))
    weight.grad = None
    out.sum().backward()
    expected = torch.nn.grad.conv2d_weight(fine, weight.shape, torch.ones_like(out))
    torch.testing.assert_close(weight.grad, expected * (weight.abs() <= 1.0078))


def test_gradient_checkpointing_and_foreign_hooks():
    """Inside someone else's hooks nothing is packed, so checkpointing works as ever."""
    made = quantizer()
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    x = torch.randn(2, 3, 9, 9, requires_grad=True)

    def block(x):
        fine, coarse = made(x), made(weight)
        with kernels.recompute_saved((fine, coarse)):
            return F.conv2d(fine, coarse)

    block(x).square().sum().backward()
    expected = x.grad.clone()
    for reentrant in (False, True):
        x.grad = None
        out = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
        out.square().sum().backward()
        assert torch.equal(x.grad, expected)
    x.grad = None
    with torch.autograd.graph.save_on_cpu():
        out = block(x)
    out.square().sum().backward()
    assert torch.equal(x.grad, expected)


def compared(made, size):
    """Assert that eager and inductor agree on a random tensor of this size."""
    results = []
    x = torch.randn(size, requires_grad=True)
    for way in ("eager", "inductor"):
        kernels.use(way)
        assert kernels.way_for(x) == way
        x.grad = None
        made.zero_grad()
        out = made(x)
        out.square().sum().backward()
        grads = [parameter.grad.clone() for parameter in made.parameters()]
        results.append((out.detach(), x.grad.clone(), grads))
    (out, dx, grads), (fast_out, fast_dx, fast_grads) = results
    assert torch.equal(out, fast_out)
    assert torch.equal(dx, fast_dx)
    for grad, fast in zip(grads, fast_grads, strict=True):
        torch.testing.assert_close(grad, fast, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_inductor_gives_the_same_bits_from_few_graphs():
    """The compiled reference form agrees, and shapes never seen compile nothing more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    weight = FakeQuantizer(Scheme(signed=True, per_channel=True), (6, 1, 1, 1))
    channels = FakeQuantizer(Scheme(mode="asymmetric", per_channel=True), (1, 6, 1))
    for made in (weight, channels):
        made.set_range(-torch.ones(6), torch.rand(6) + 0.5)
    for made, size in (
        (quantizer(), (1000,)),
        (quantizer(), (100, 100)),
        (weight, (6, 3, 3, 3)),
        (channels, (4, 6, 8)),
        (channels, (400, 6, 80)),
    ):
        compared(made, size)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for made, size in (
        (quantizer(), (2, 3, 4, 5)),
        (quantizer(), (7, 131, 19)),
        (weight, (6, 8, 5, 5)),
        (weight, (6, 16, 1, 1)),
        (channels, (3, 6, 31)),
        (channels, (333, 6, 47)),
    ):
        compared(made, size)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert graphs <= 10
