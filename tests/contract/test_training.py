# SPDX-License-Identifier: Apache-2.0
"""Compressed models train as models do: precision, checkpoints, compilers, copies, threads."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import nncf
from tests.contract.cases import (
    CASES,
    STATIC,
    Case,
    compress,
    every_case,
    every_pair,
    trained,
)
from tests.contract.comparing import call, disturb, disturbed, equal, gradients, near, same, unequal
from tests.contract.models import EXAMPLES, Example, logits


@every_pair
def test_loss_is_differentiable_and_everything_learns(case: Case, example: Example) -> None:
    """Task loss plus compression loss has a gradient for every parameter that takes part."""
    controller, model = trained(case, example)
    args, kwargs = example.batch(2)
    loss = logits(model(*args, **kwargs)).square().sum() + controller.loss()
    loss.backward()
    assert torch.isfinite(loss)
    unused = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    branch = {"up", "down"} if "up.weight" in model.state_dict() else set()
    assert {
        n for n in unused if not branch & set(n.replace("[", ".").replace("]", ".").split("."))
    } == set()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_case
def test_stage_grows_with_the_schedule(case: Case, example: Example) -> None:
    """The compression stage goes through the documented stages epoch by epoch."""
    controller, _ = compress(case, example)
    seen = []
    for _ in case.stages:
        controller.scheduler.epoch_step()
        seen.append(int(controller.compression_stage()))
    assert tuple(seen) == case.stages


@every_case
def test_statistics_print(case: Case, example: Example) -> None:
    """Statistics have a part for the algorithm, which prints as a table."""
    controller, _ = compress(case, example)
    statistics = controller.statistics()
    assert getattr(statistics, case.algorithm) is not None
    assert "|" in statistics.to_str()
    assert statistics.to_str() == str(statistics)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(case: Case, example: Example, dtype: torch.dtype) -> None:
    """Under autocast the output has the lower precision, close to full, and gradients flow."""
    controller, model = trained(case, example)
    model.eval()
    args, kwargs = example.batch(3)
    full = logits(model(*args, **kwargs))
    with torch.autocast("cpu", dtype):
        low = logits(model(*args, **kwargs))
        stripped = logits(controller.strip()(*args, **kwargs))
    assert low.dtype is dtype
    assert torch.allclose(low.float(), full, atol=0.1 * float(full.abs().max()))
    assert equal(low, stripped)
    low.float().square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@every_pair
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_gradient_checkpointing(case: Case, example: Example, reentrant: bool) -> None:
    """Recomputation inside the backward pass is compressed too: same output, same gradients."""
    _, model = trained(case, example)
    model.eval()
    args, kwargs = example.batch(4)
    args = tuple(a.requires_grad_() if a.is_floating_point() else a for a in args)
    expected = gradients(model, (args, kwargs))
    parameters = torch.zeros((), requires_grad=True)  # reentrant needs an input with a gradient

    def forward(anchor: torch.Tensor, *values: Any) -> torch.Tensor:
        return logits(model(*values, **kwargs)) + 0 * anchor

    output = checkpoint(forward, parameters, *args, use_reentrant=reentrant)
    model.zero_grad()
    output.square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert same(found, expected)


class Closures(nn.Module):
    """Recomputes functions of its own, and a shared module twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(8, 8)
        self.shared = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.linear(x, self.first.weight) + x
        return self.first(torch.relu(x)) * torch.sigmoid(x)

    def run(self, function: Any, *args: torch.Tensor) -> torch.Tensor:
        if self.kind == "none":
            return function(*args)
        return checkpoint(function, *args, use_reentrant=self.kind == "reentrant")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = self.run(self.inner, x)
        x = self.run(self.shared, x)
        x = self.run(self.shared, x)
        return self.head(self.run(lambda a: self.run(self.inner, a) + a, x))


@pytest.mark.parametrize("kind", ["non-reentrant", "reentrant"])
def test_checkpointed_functions(kind: str) -> None:
    """Functions and shared modules that are recomputed get the quantizers of their first run."""
    example = Example(
        lambda: Closures("none"), {"sample_size": [1, 8]}, EXAMPLES["branching"].inputs
    )
    _, model = trained(CASES[0], example)
    model.train()
    expected = gradients(model, example)
    model.kind = kind
    for one in (model, copy.deepcopy(model)):
        found = gradients(one, example)
        assert found.keys() == expected.keys()
        # The reentrant kind adds the gradients of a shared weight up in another order.
        exact = 0.0 if kind == "non-reentrant" else 1e-5
        assert all(torch.allclose(found[n], g, exact, exact) for n, g in expected.items())


# Compiling takes seconds: these few here, all others with -m slow.
QUICK = {
    *("int8-residual", "int8-shared", "asymmetric, logarithmic-residual"),
    *("magnitude-residual", "rb-residual"),
}
COMPILED = [
    pytest.param(*pair.values, id=pair.id, marks=() if pair.id in QUICK else pytest.mark.slow)
    for pair in STATIC
]


@pytest.mark.parametrize(("case", "example"), COMPILED)
def test_compiled_model_computes_the_same(case: Case, example: Example) -> None:
    """One graph without breaks, the same output and gradients as eager."""
    _, model = trained(case, example)
    model.eval()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        output = call(compiled, example)
        found = gradients(compiled, example)
    expected = gradients(model, example)
    assert same(output, call(model, example))
    assert {name.removeprefix("_orig_mod.") for name in found} == set(expected)
    for name, gradient in found.items():
        other = expected[name.removeprefix("_orig_mod.")]
        assert torch.allclose(
            gradient, other, rtol=1e-4, atol=1e-5 * (1 + float(other.abs().max()))
        )


@every_case
def test_torch_export_of_the_compressed_model(case: Case, example: Example) -> None:
    """``torch.export`` takes the compressed model itself."""
    _, model = trained(case, example)
    args, kwargs = example.batch(6)
    program = torch.export.export(model.eval(), args, kwargs)
    assert same(program.module()(*args, **kwargs), model(*args, **kwargs))


@every_case
def test_tracing_of_the_compressed_model(case: Case, example: Example) -> None:
    """``torch.jit.trace`` takes the stripped model."""
    controller, model = trained(case, example)
    stripped = controller.strip().eval()
    args, _ = example.batch(6)
    traced = torch.jit.trace(stripped, args)
    assert same(traced(*args), stripped(*args))
    assert (same if case.exact_strip else near)(traced(*args), model.eval()(*args))


@every_pair
def test_averaged_copy(case: Case, example: Example) -> None:
    """An average over copies is compressed with the averaged ranges; loads and saves like a model."""
    _, model = trained(case, example)
    model.eval()
    average = AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    first = call(average, example)
    assert same(first, call(model, example))
    disturb(model)
    average.update_parameters(model)
    assert unequal(call(average, example), first)
    _, twin = compress(case, example)
    state = {k: v for k, v in average.state_dict().items() if k != "n_averaged"}
    nncf.load_state(twin, state, is_resume=True)
    assert same(twin.state_dict(), average.module.state_dict())


@every_pair
def test_functional_call(case: Case, example: Example) -> None:
    """Parameters and buffers given from outside are used, those of the CompressionOps too."""
    _, model = trained(case, example)
    model.eval()
    args, kwargs = example.batch(7)
    state = {
        name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()
    }
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    added = {n for n in values if n.startswith("compression.")} or set(values)
    others = {n: disturbed(v) if n in added else v for n, v in values.items()}
    assert same(functional_call(model, values, args, kwargs), model(*args, **kwargs))
    assert unequal(functional_call(model, others, args, kwargs), model(*args, **kwargs))
    assert same(model.state_dict(), state)


@every_pair
def test_threads(case: Case, example: Example) -> None:
    """Forwards of several threads at once don't disturb each other."""
    _, model = trained(case, example)
    model.eval()
    expected = [call(model, example, seed) for seed in range(8)]
    found: list[Any] = [None] * 8

    def work(seed: int) -> None:
        for _ in range(3):
            found[seed] = call(model, example, seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


@every_pair
def test_data_parallel(case: Case, example: Example) -> None:
    """A model in ``DataParallel`` computes the same, and states pass between the two forms."""
    _, model = trained(case, example)
    wrapped = nn.DataParallel(model).eval()
    assert same(call(wrapped, example), call(model, example))
    _, plain = compress(case, example, seed=1)
    nncf.load_state(plain, wrapped.state_dict(), is_resume=True)
    assert same(plain.state_dict(), model.state_dict())
    _, other = compress(case, example, seed=1)
    nncf.load_state(nn.DataParallel(other), model.state_dict(), is_resume=True)
    assert same(other.state_dict(), model.state_dict())
