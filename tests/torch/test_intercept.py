# SPDX-License-Identifier: Apache-2.0
"""CompressionOps run at their points: all of them, only there, on what the model means."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nncf.compression.layout import Insert, Layout
from nncf.graph.address import Point
from nncf.torch import hooks
from nncf.torch.capture import capture
from nncf.torch.intercept import Compression, compression_of, install, uninstall


@dataclass(frozen=True)
class Description:
    algorithm: ClassVar[str] = "test"
    tag: ClassVar[str] = ""

    def to_state(self) -> dict[str, Any]:
        return {}


class Double(nn.Module):
    """Doubles a tensor, with a gradient that needs the tensor as it was; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.factor


def compress(model: nn.Module, *points: str, x: Any = None) -> Compression:
    """Insert a Double at every point; points joined by + share one."""
    x = torch.rand(2, 4) if x is None else x
    taken = capture(model, lambda m: m(x), inputs=(x,))
    groups = [tuple(Point.parse(text) for text in point.split(" + ")) for point in points]
    layout = Layout([Insert(group, Description()) for group in groups])
    ops = {insert.name: Double() for insert in layout}
    compression = Compression(layout, ops, taken)
    install(model, compression)
    return compression


def net(forward: Any, **parts: nn.Module) -> nn.Module:
    """Return a model called Net whose forward is ``forward(model, x)``."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                self.add_module(name, part)

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Net()


X = torch.tensor([[1.0, -2.0], [3.0, -4.0]])


# where ops run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "forward", "expected"),
    [
        ("Net/relu_0|OUTPUT", lambda _, x: F.relu(x - 1), 2 * F.relu(X - 1)),
        ("Net/__sub___0|INPUT0", lambda _, x: x - 1, 2 * X - 1),
        ("Net/__sub___0|INPUT1", lambda _, x: x - F.relu(x), X - 2 * F.relu(X)),
        ("Net/sub_0|INPUT1", lambda _, x: torch.sub(other=x, input=x + 1), 1 - X),
        ("Net/cat_0|INPUT1", lambda _, x: torch.cat([x, x + 1, x]), torch.cat([X, 2 * X + 2, X])),
        ("Net/max_0|OUTPUT", lambda _, x: x.max(dim=1)[0], 2 * X.amax(1)),
        ("Net/chunk_0|OUTPUT1", lambda _, x: x.chunk(2, 1)[1], 2 * X[:, 1:]),
        ("Net/relu_1|OUTPUT", lambda _, x: F.relu(F.relu(x) - 1), 2 * F.relu(F.relu(X) - 1)),
        ("/nncf_model_input_0|OUTPUT", lambda _, x: (x + 1) * x, (2 * X + 1) * 2 * X),
    ],
)
def test_points(point: str, forward: Any, expected: torch.Tensor) -> None:
    """Inputs by port, whether positional, by keyword or in a list; outputs, single or several."""
    model = net(forward)
    compress(model, point, x=X)
    torch.testing.assert_close(model(X), expected, check_dtype=False)


def test_weight() -> None:
    """The weight of a layer is its input 1; the bias is left alone."""
    layer = nn.Linear(4, 3)
    model = nn.Sequential(layer)
    compress(model, "Sequential/Linear[0]/linear_0|WEIGHT")
    x = torch.rand(2, 4)
    torch.testing.assert_close(model(x), F.linear(x, 2 * layer.weight, layer.bias))


def test_shared_op() -> None:
    """Points of one Insert share one op and its parameters."""
    model = net(lambda _, x: F.relu(x) + torch.tanh(x))
    compression = compress(model, "Net/relu_0|OUTPUT + Net/tanh_0|OUTPUT")
    x = torch.rand(2, 4)
    torch.testing.assert_close(model(x), 2 * (F.relu(x) + torch.tanh(x)))
    assert len(compression.ops) == 1


def test_order_at_one_point() -> None:
    """Ops that meet at one point run in the order of the layout."""
    model = net(lambda _, x: F.relu(x))
    compression = compress(model, "Net/relu_0|OUTPUT", "Net/relu_0|OUTPUT + Net/relu_0|INPUT0")
    assert [op.name for op in compression.layout] == ["Net/relu_0|OUTPUT"] * 2
    assert compression.sites["Net/relu_0"].after == {0: ["Net/relu_0|OUTPUT"]}


def test_root_sequential() -> None:
    """The submodule does not disturb a root nn.Sequential, which calls all its children."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = torch.rand(2, 4)
    expected = 2 * model(x)
    compress(model, "Sequential/ReLU[1]/relu_0|OUTPUT")
    torch.testing.assert_close(model(x), expected)


def test_part_called_alone() -> None:
    """A part of the model that is called directly is compressed too."""
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
    compress(model, "Sequential/Sequential[0]/ReLU[0]/relu_0|OUTPUT")
    x = torch.rand(2, 4)
    torch.testing.assert_close(model[0](x), 2 * x)


# what the model does in its own ways --------------------------------------------------------


@pytest.mark.parametrize("statement", ["method", "index", "function"])
def test_in_place_operation_with_an_op_at_its_input(statement: str) -> None:
    """An operation that changes its input changes the model's tensor, not a copy of it."""

    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        if statement == "method":
            y.add_(1)
        elif statement == "index":
            y[:, :1] = 7.0
        else:
            F.relu(y, inplace=True)
        return y

    name = {"method": "__iadd__", "index": "__setitem__", "function": "relu"}[statement]
    model = net(forward)
    compress(model, f"Net/{name}_0|INPUT0", x=X)
    doubled = 2 * X
    indexed = torch.cat([torch.full((2, 1), 7.0), doubled[:, 1:]], 1)
    expected = {"method": doubled + 1, "index": indexed, "function": F.relu(doubled)}[statement]
    torch.testing.assert_close(model(X), expected)


def test_gradient_past_a_later_change_in_place() -> None:
    """What an op keeps for its gradient is not overwritten by the model afterwards."""

    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        z = torch.tanh(y)
        y.mul_(3)
        return z + y

    model = net(forward)
    compression = compress(model, "Net/tanh_0|INPUT0", x=X)
    model(X).sum().backward()
    (op,) = compression.ops.values()
    expected = ((1 - torch.tanh(2 * X) ** 2) * X).sum()
    torch.testing.assert_close(op.factor.grad, expected)


def test_reader_of_the_old_object() -> None:
    """Who reads a tensor changed in place by its old name gets what the op made of it."""

    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        F.relu(y, inplace=True)
        return y + 1

    model = net(forward)
    compress(model, "Net/relu_0|OUTPUT", x=X)
    torch.testing.assert_close(model(X), 2 * F.relu(X) + 1)


def test_branch_that_capture_did_not_take() -> None:
    """Data may send the model another way: ops run where it comes past, others wait."""

    def forward(model: Any, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = model.positive(x)
        return torch.relu(x)

    model = net(forward, positive=nn.ReLU())
    compression = compress(model, "Net/ReLU[positive]/relu_0|OUTPUT", "Net/relu_0|OUTPUT")
    torch.testing.assert_close(model(X - 9), torch.zeros(2, 2))
    assert [op.calls for op in compression.ops.values()] == [0, 1]
    torch.testing.assert_close(model(X + 9), 4 * (X + 9))


def test_layer_that_only_training_runs() -> None:
    """A layer that capture never ran is not counted as its parent."""

    def forward(model: Any, x: torch.Tensor) -> torch.Tensor:
        extra = model.auxiliary(x) if model.training else 0
        return torch.relu(x) + extra

    model = net(forward, auxiliary=nn.ReLU())
    compress(model, "Net/relu_0|OUTPUT")
    torch.testing.assert_close(model.eval()(X), 2 * F.relu(X))
    torch.testing.assert_close(model.train()(X), 3 * F.relu(X))


def test_time_steps_share_their_ops() -> None:
    """All time steps of a recurrent layer run through the same ops."""
    model = nn.Sequential(nn.LSTM(4, 3))
    x = torch.rand(5, 2, 4)
    compression = compress(model, "Sequential/LSTM[0]/linear_1|WEIGHT", x=x)
    (op,) = compression.ops.values()
    plain = copy.deepcopy(model[0])
    uninstalled = [module for module in plain.modules() if module._forward_hooks]
    for module in uninstalled:
        hooks.detach(module, next(iter(module._forward_hooks.values())).source)
    plain.weight_hh_l0.data *= 2
    torch.testing.assert_close(model(x)[0], plain(x)[0])
    assert op.calls == 5


def test_rewrites_only_where_needed() -> None:
    """A fused attention in which nothing is compressed runs as it is."""
    seen: list[str] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    attend = lambda m, x: F.scaled_dot_product_attention(x, x, x)  # noqa: E731 (two nets use it)
    model = net(
        lambda m, x: m.second(torch.relu(m.first(x))), first=net(attend), second=net(attend)
    )
    compress(model, "Net/Net[second]/matmul_0|INPUT0", x=torch.rand(1, 2, 4))
    with Watch():
        model(torch.rand(1, 2, 4))
    assert seen.count("scaled_dot_product_attention") == 1
    assert seen.count("matmul") == 2


# what stays of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_run_their_own_ops(duplicate: Any) -> None:
    """A copy, or a pickled model, runs its own ops; torch.ops functions are no obstacle."""
    model = Pickled()
    compress(model, "Pickled/relu_0|OUTPUT", "Pickled/matrix_exp_0|INPUT0", x=X)
    other = duplicate(model)
    torch.testing.assert_close(other(X), model(X))
    before = model(X)
    for op in compression_of(other).ops.values():
        op.factor.data.fill_(1.0)
    torch.testing.assert_close(other(X), torch.linalg.matrix_exp(F.relu(X)))
    torch.testing.assert_close(model(X), before)


class Pickled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.matrix_exp(torch.ops.aten.relu.default(x))


def test_uninstall() -> None:
    """Taken out again, the model has its old children, hooks and values."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = torch.rand(2, 4)
    expected = model(x)
    compress(model, "Sequential/ReLU[1]/relu_0|OUTPUT")
    uninstall(model)
    assert list(model._modules) == ["0", "1"]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(model(x), expected)


def test_exception_in_forward() -> None:
    """After a failed forward nothing outside the model is compressed, and the next one works."""

    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 3:
            raise ValueError("on purpose")
        return torch.relu(x)

    model = net(forward)
    compression = compress(model, "Net/relu_0|OUTPUT")
    with pytest.raises(ValueError, match="on purpose"):
        model(torch.rand(3, 4))
    torch.relu(torch.rand(2))
    assert hooks.active_mode() is None
    assert next(iter(compression.ops.values())).calls == 0
    model(torch.rand(2, 4))
    assert next(iter(compression.ops.values())).calls == 1


def test_hooks_only_where_needed() -> None:
    """Layers on no path to an op, which capture ran, get no hooks."""
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh()))
    compress(model, "Sequential/Sequential[0]/ReLU[0]/relu_0|OUTPUT")
    hooked = [path for path, m in model.named_modules() if m._forward_hooks]
    assert hooked == ["", "0", "0.0"]


def test_a_forward_is_freed_at_once() -> None:
    """What a step has made is freed when it ends, without the garbage collector."""
    seen: list[weakref.ref[Any]] = []

    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(weakref.ref(hooks.active_mode()))
        between = torch.cat([x, x])
        seen.append(weakref.ref(between))
        return torch.relu(between)

    model = net(forward)
    compress(model, "Net/relu_0|OUTPUT", "Net/cat_0|INPUT1")
    seen.clear()
    gc.disable()
    try:
        model(torch.rand(2, 4, requires_grad=True)).sum().backward()
        assert len(seen) == 2
        assert [one() for one in seen] == [None, None]
    finally:
        gc.enable()
