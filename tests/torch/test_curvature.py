# SPDX-License-Identifier: Apache-2.0
"""Hessian traces against the exact Hessian of small networks, and what measuring leaves behind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

import nncf
from nncf.errors import DataError
from nncf.torch import curvature
from nncf.torch.curvature import TraceWish, average_traces, load_numbers, rounding_errors
from tests.algorithms.mixed_precision.mixed import Branching, data


class Tied(nn.Module):
    """A weight that two operations use, and one that is computed from its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.raw = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        return nn.functional.linear(x, 2 * self.raw)


def compressed(model: nn.Module, size: tuple[int, ...] = (1, 3, 8, 8)) -> nn.Module:
    config = nncf.NNCFConfig.from_dict(
        {"input_info": {"sample_size": size}, "compression": {"algorithm": "quantization"}}
    )
    return nncf.create_compressed_model(model, config, dump_graphs=False)[1]


def weights_of(model: Any) -> list[str]:
    return [insert.name for insert in model.compression.layout if insert.op.weight]


def wish(loader: Any, **changed: Any) -> TraceWish:
    settings = {"samples": 24, "vectors": 12, "tolerance": 1e-12, **changed}
    return TraceWish(loader, nn.CrossEntropyLoss(), **settings)


def exact(
    model: nn.Module, weights: dict[str, Tensor], loader: Any
) -> dict[str, dict[str, Tensor]]:
    """Return the blocks of the Hessian of the mean loss by the named parameters."""
    batches = list(loader)

    def loss(given: dict[str, Tensor]) -> Tensor:
        losses = [
            nn.functional.cross_entropy(functional_call(model, given, (x,)), y) * len(x)
            for x, y in batches
        ]
        return torch.stack(losses).sum() / sum(len(x) for x, _ in batches)

    blocks = hessian(loss)(weights)
    return {
        a: {b: block.reshape(weights[a].numel(), weights[b].numel()) for b, block in row.items()}
        for a, row in blocks.items()
    }


def test_products_are_those_of_the_exact_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of v·Hv is, vector for vector, what the full Hessian gives."""
    plain = Branching().eval()
    loader = data(20, batch=8)  # the last batch is smaller and counts less
    names = ["conv1.weight", "conv2.weight", "conv3.weight", "linear.weight"]
    blocks = exact(plain, {n: plain.get_parameter(n).detach() for n in names}, loader)
    drawn: list[Tensor] = []
    draw = curvature._Hutchinson._signs

    def noting(self: Any, like: Tensor) -> Tensor:
        drawn.append(draw(self, like))
        return drawn[-1]

    monkeypatch.setattr(curvature._Hutchinson, "_signs", noting)
    model = compressed(plain)
    found = average_traces(model, weights_of(model), wish(loader, vectors=3))
    assert len(drawn) == 12
    for place, name in enumerate(names):
        products = []
        for vector in (drawn[start : start + 4] for start in (0, 4, 8)):
            flat = {n: v.flatten() for n, v in zip(names, vector, strict=True)}
            products.append(flat[name] @ sum(blocks[name][n] @ flat[n] for n in names))
        expected = torch.stack(products).mean() / len(flat[name])
        assert found[weights_of(model)[place]] == pytest.approx(expected.item(), rel=1e-3, abs=1e-7)


def fit(model: nn.Module, loader: Any) -> None:
    """Train until the Hessian is that of a minimum: not all zeros, and not indefinite."""
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(40):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def is_near(estimate: float, blocks: dict[str, dict[str, Tensor]], name: str, vectors: int) -> bool:
    """Whether an estimate lies within four standard deviations of the exact average trace.

    Per vector the variance is that of v·Hv: twice the squares beside the diagonal of the own
    block, and the squares of the blocks that join the weight to others.
    """
    own = blocks[name][name]
    beside = 2 * (own - own.diag().diag()).square().sum()
    others = sum(block.square().sum() for other, block in blocks[name].items() if other != name)
    deviation = (beside + others).sqrt().item() / len(own) / vectors**0.5
    trace = own.trace().item() / len(own)
    assert deviation < 0.5 * abs(trace), "the test would say nothing"
    return abs(estimate - trace) < 4 * deviation


def test_the_estimate_tends_to_the_exact_trace() -> None:
    """With many vectors each layer's estimate is as near the exact trace as it has to be."""
    plain = Branching().eval()
    loader = data(8)
    fit(plain, loader)
    names = ["conv1.weight", "conv2.weight", "conv3.weight", "linear.weight"]
    blocks = exact(plain, {n: plain.get_parameter(n).detach() for n in names}, loader)
    model = compressed(plain)
    found = average_traces(model, weights_of(model), wish(loader, vectors=400))
    for name, estimate in zip(names, found.values(), strict=True):
        assert is_near(estimate, blocks, name, 400)


def test_shared_and_computed_weights_are_seen_where_they_enter() -> None:
    """A shared weight has one trace for both uses; a computed one that of the computed tensor."""
    plain = Tied().eval()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.rand(16, 6), torch.randint(0, 5, (16,))), 8
    )
    fit(plain, loader)
    names = ("shared.weight", "raw")
    blocks = exact(plain, {n: plain.get_parameter(n).detach() for n in names}, loader)
    scale = {"shared.weight": 1.0, "raw": 2.0}  # derivatives by 2 · raw, not by raw
    blocks = {
        a: {b: block / (scale[a] * scale[b]) for b, block in row.items()}
        for a, row in blocks.items()
    }
    model = compressed(plain, (1, 6))
    found = average_traces(model, weights_of(model), wish(loader, samples=16, vectors=800))
    for name, estimate in zip(names, found.values(), strict=True):
        assert is_near(estimate, blocks, name, 800)


def test_nothing_is_left_behind_and_chance_decides_nothing() -> None:
    """Weights, gradients, flags, batch norms and random streams stay; the result repeats itself."""
    model = compressed(Branching().train())
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    model.conv3.weight.requires_grad_(False)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ops = dict(model.compression.ops.items())
    first = average_traces(model, weights_of(model), wish(data()))
    torch.rand(3)
    second = average_traces(model, weights_of(model), wish(data()))
    torch.set_rng_state(random)
    average_traces(model, weights_of(model), wish(data()))
    assert first == second
    assert torch.equal(torch.get_rng_state(), random)
    assert dict(model.compression.ops.items()) == ops
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert [p.requires_grad for p in (model.conv1.weight, model.conv3.weight)] == [True, False]
    assert model.training
    assert model.norm.training


def test_it_stops_when_the_mean_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generous tolerance ends the estimate after the least number of vectors."""
    model = compressed(Branching())
    counted = []
    draw = curvature._Hutchinson._settled
    monkeypatch.setattr(curvature._Hutchinson, "_settled", lambda *a: counted.append(1) or draw(*a))
    average_traces(model, weights_of(model), wish(data(), vectors=50, tolerance=100.0))
    assert len(counted) == 1
    average_traces(model, weights_of(model), wish(data(), vectors=50, tolerance=1e-12))
    assert len(counted) == 42  # the vectors from the least number on


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "smaller batch size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"), "smaller batch size"),
        (RuntimeError("the derivative for 'x' is not implemented"), "traces_per_layer_path"),
    ],
)
def test_failures_say_what_to_do(error: Exception, words: str) -> None:
    """Running out of memory advises smaller batches, a loss without second derivatives a file."""
    model = compressed(Branching())
    before = dict(model.compression.ops.items())

    def fail(_outputs: Any, _target: Any) -> Any:
        raise error

    asked = TraceWish(data(), fail, samples=8, vectors=2, tolerance=1e-4)
    with pytest.raises(DataError, match=words):
        average_traces(model, weights_of(model), asked)
    assert dict(model.compression.ops.items()) == before


def test_other_errors_of_the_criterion_pass_as_they_are() -> None:
    """An error that we know nothing about is not explained away."""
    model = compressed(Branching())

    def fail(_outputs: Any, _target: Any) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        average_traces(model, weights_of(model), TraceWish(data(), fail, 8, 2, 1e-4))


@pytest.mark.parametrize("value", [0.5, torch.ones(3), torch.tensor(float("nan"))])
def test_a_loss_must_be_one_finite_number(value: Any) -> None:
    """A criterion that returns anything but a finite scalar is refused."""
    model = compressed(Branching())
    asked = TraceWish(data(), lambda _outputs, _target: value, 8, 2, 1e-4)
    with pytest.raises(DataError, match="one finite number"):
        average_traces(model, weights_of(model), asked)


def test_attention_is_differentiated_twice() -> None:
    """Fused attention has no second derivative and is computed in its plain form meanwhile."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = compressed(nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 5)), (1, 4, 8))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.rand(8, 4, 8), torch.randint(0, 5, (8,))), 8
    )
    found = average_traces(model, weights_of(model), wish(loader, samples=8))
    assert all(trace != 0 for trace in found.values())


def test_rounding_errors_are_those_of_the_quantizers() -> None:
    """The squared distance between a weight and its baked form, and nothing else is changed."""
    model = compressed(Branching())
    names = weights_of(model)
    quantizers = {name: model.compression.ops[name] for name in names}
    before = copy.deepcopy(model.state_dict())
    found = rounding_errors(model, quantizers, lambda m: m(torch.rand(1, 3, 8, 8)))
    for name, layer in zip(
        names, (model.conv1, model.conv2, model.conv3, model.linear), strict=True
    ):
        weight = layer.weight.detach()
        baked = quantizers[name].bake(weight)
        assert found[name] == pytest.approx(float((baked - weight).double().square().sum()))
        assert found[name] > 0
    assert all(op.observer is None for op in model.compression.ops.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_files_of_numbers_are_read_without_running_them(tmp_path: Path) -> None:
    """Tensors and JSON are read; a pickle that would run code is refused."""
    torch.save(torch.tensor([1.0, 2.0]), tmp_path / "traces.pt")
    (tmp_path / "traces.json").write_text('{"a": 1.5}')
    torch.save(nn.Linear(1, 1), tmp_path / "model.pt")
    assert load_numbers(tmp_path / "traces.pt") == [1.0, 2.0]
    assert load_numbers(tmp_path / "traces.json") == {"a": 1.5}
    with pytest.raises(ValueError, match="UnpicklingError"):
        load_numbers(tmp_path / "model.pt")
