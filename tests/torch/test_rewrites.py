# SPDX-License-Identifier: Apache-2.0
"""Written-out forms compute what the functions compute that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nncf.torch.capture import capture
from nncf.torch.hooks import ScopedMode
from nncf.torch.rewrites import FUNCTIONS, rewrite_of, unreached_reason

TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


class Rewriting(ScopedMode):
    """Runs every rewrite, as a compressed model does where something inside is compressed."""

    def __init__(self) -> None:
        super().__init__("test")
        self.scopes = ["Test"]
        self.keys: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = FUNCTIONS.get(func, getattr(func, "__name__", ""))
        rewrite = rewrite_of(name, args, kwargs) if func in FUNCTIONS else None
        if rewrite is not None:
            return rewrite(self, *args, **kwargs)
        self.keys.append(self.next_key(name))
        return func(*args, **kwargs)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value or () for t in tensors(item)]


def check(run: Callable[[], Any], *learned: torch.Tensor) -> list[str]:
    """Compare values and gradients of ``run`` with and without rewrites; return the calls made."""
    expected = tensors(run())
    with Rewriting() as mode:
        found = tensors(run())
    torch.testing.assert_close(found, expected, **TOLERANCE)
    weights = [torch.randn_like(t) for t in expected]
    gradients = []
    for results in (found, expected):
        loss = sum((t * w).sum() for t, w in zip(results, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, learned) if learned else ())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    return mode.keys


def made(keys: list[str], name: str) -> int:
    return len({key for key in keys if key.startswith(f"Test/{name}_")})


# attention ----------------------------------------------------------------------------------

_BLOCKED = torch.ones(5, 7, dtype=torch.bool)
_BLOCKED[2] = False


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.ones(5, 7, dtype=torch.bool).tril()},
        {"attn_mask": torch.randn(2, 1, 5, 7)},
        {"attn_mask": _BLOCKED},
    ],
    ids=["plain", "causal", "scale", "boolean mask", "added mask", "query without keys"],
)
def test_fused_attention(settings: dict[str, Any]) -> None:
    """Fused attention is two matmuls around a softmax, with every kind of mask."""
    query = torch.randn(2, 3, 5, 8, requires_grad=True)
    key, value = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(2))
    keys = check(
        lambda: F.scaled_dot_product_attention(query, key, value, **settings), query, key, value
    )
    assert made(keys, "matmul") == 2


def test_grouped_query_attention() -> None:
    """Several queries may share keys and values."""
    query = torch.randn(2, 6, 5, 8, requires_grad=True)
    key, value = (torch.randn(2, 2, 5, 8, requires_grad=True) for _ in range(2))
    run = lambda: F.scaled_dot_product_attention(query, key, value, enable_gqa=True)  # noqa: E731 (one expression)
    assert made(check(run, query, key, value), "matmul") == 2


def test_attention_dropout() -> None:
    """Dropout of attention keeps the expectation and zeroes weights."""
    query = torch.ones(1, 1, 64, 4)
    value = torch.ones(1, 1, 64, 4)
    with Rewriting():
        found = F.scaled_dot_product_attention(query, query, value, dropout_p=0.5)
    assert 0.8 < float(found.mean()) < 1.2
    assert float(found.std()) > 0.05


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": False},
        {"kdim": 6, "vdim": 10},
        {"add_bias_kv": True},
        {"add_zero_attn": True, "add_bias_kv": True},
    ],
    ids=["plain", "no bias", "other widths", "trained key", "zero key"],
)
def test_multi_head_attention(settings: dict[str, Any], batch_first: bool, weights: bool) -> None:
    """nn.MultiheadAttention, self and cross attention, with both of its masks."""
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first, **settings).train()
    query = torch.randn(3, 3, 8)
    key = torch.randn(3, 3, settings.get("kdim", 8))
    value = torch.randn(3, 3, settings.get("vdim", 8))
    padding = torch.zeros(3, 3, dtype=torch.bool)
    padding[1, 2] = True
    mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
    learned = [p for p in layer.parameters() if p.requires_grad]
    run = lambda: layer(  # noqa: E731 (one expression)
        query, key, value, key_padding_mask=padding, attn_mask=mask, need_weights=weights
    )
    assert made(check(run, *learned), "linear") == 4
    if "kdim" not in settings:
        keys = check(lambda: layer(query, query, query, need_weights=weights), layer.in_proj_weight)
        assert made(keys, "linear") == 2


def test_multi_head_attention_masks() -> None:
    """A mask per head, weights per head, and one sequence without a batch."""
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    query = torch.randn(3, 4, 8)
    mask = torch.randn(6, 4, 4)
    check(lambda: layer(query, query, query, attn_mask=mask, average_attn_weights=False))
    check(lambda: layer(query[0], query[0], query[0], key_padding_mask=torch.zeros(4)))


def test_encoder_layer_leaves_its_fast_path() -> None:
    """nn.TransformerEncoderLayer shows its inner calls, in evaluation mode too."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 4, 8)
    with torch.no_grad():
        keys = check(lambda: layer(x))
    assert made(keys, "linear") == 4
    assert made(keys, "matmul") == 2


# recurrent layers ---------------------------------------------------------------------------

LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn tanh": nn.RNN,
    "rnn relu": lambda *sizes, **settings: nn.RNN(*sizes, nonlinearity="relu", **settings),
}
SHAPES = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True, "bidirectional": True},
    "no bias": {"bias": False, "num_layers": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", LAYERS)
def test_recurrent_layer(cell: str, shape: str) -> None:
    """LSTM, GRU and RNN layers, with and without initial states and batch."""
    layer = LAYERS[cell](4, 6, **SHAPES[shape])
    x = torch.randn(3, 3, 4, requires_grad=True)
    keys = check(lambda: layer(x), x, *layer.parameters())
    settings = SHAPES[shape]
    count = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    assert made(keys, "linear") == 2 * count
    states = torch.randn(count, 3, 6)
    check(lambda: layer(x, (states, -states) if cell == "lstm" else states), x)
    check(lambda: layer(x[:, 0] if not settings.get("batch_first") else x[0]), x)


@pytest.mark.parametrize("shape", ["plain", "both directions"])
@pytest.mark.parametrize("cell", LAYERS)
def test_packed_sequence(cell: str, shape: str) -> None:
    """Sequences of different lengths, packed, run as one call does."""
    layer = LAYERS[cell](4, 6, **SHAPES[shape])
    x = torch.randn(5, 3, 4, requires_grad=True)

    def run() -> Any:
        packed = pack_padded_sequence(x, torch.tensor([5, 2, 3]), enforce_sorted=False)
        output, states = layer(packed)
        return pad_packed_sequence(output)[0], states

    assert made(check(run, x, *layer.parameters()), "linear") > 0


@pytest.mark.parametrize("bias", [True, False])
def test_projected_lstm(bias: bool) -> None:
    """An LSTM may project its state to fewer channels."""
    layer = nn.LSTM(4, 6, proj_size=2, num_layers=2, bidirectional=True, bias=bias)
    x = torch.randn(5, 3, 4, requires_grad=True)
    assert made(check(lambda: layer(x), x, *layer.parameters()), "linear") == 3 * 4


def test_recurrent_dropout() -> None:
    """Dropout falls between layers, in training only."""
    layer = nn.GRU(4, 64, num_layers=2, dropout=0.5)
    x = torch.randn(5, 3, 4)
    check(lambda: layer.eval()(x)[0])
    layer.train()
    with Rewriting():
        assert not torch.equal(layer(x)[0], layer(x)[0])
        assert bool((layer(x)[0] != 0).all())


@pytest.mark.parametrize(
    "cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda i, o: nn.RNNCell(i, o, bias=False)]
)
def test_recurrent_cell(cell: Callable[..., nn.Module]) -> None:
    """Cells in a loop of the user share the addresses of their first call."""
    layer = cell(4, 6)
    x = torch.randn(5, 3, 4, requires_grad=True)

    def run() -> Any:
        state = None
        for step in x:
            state = layer(step, state)
        return state

    assert made(check(run, x, *layer.parameters()), "linear") == 2


# products by index --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,kj", [(2, 3), (4, 3)]),
        ("bqhd,bkhd->bhqk", [(2, 3, 4, 5), (2, 6, 4, 5)]),
        ("...ij,...jk->...ik", [(2, 7, 3, 4), (7, 4, 5)]),
        ("...ij,jk->...ik", [(2, 7, 3, 4), (4, 5)]),
        ("bi,bi->b", [(3, 4), (3, 4)]),
        ("bi,bi->bi", [(3, 4), (3, 4)]),
        ("i,j->ij", [(3,), (4,)]),
        ("bij,k->bk", [(2, 3, 4), (5,)]),
        ("bij,bij->", [(2, 3, 4), (2, 3, 4)]),
        ("bij,bjk->bik", [(1, 3, 4), (2, 4, 5)]),
        ("ai,bij,cj->abc", [(2, 3), (4, 3, 5), (6, 5)]),
        ("i j, j k -> k i", [(2, 3), (3, 4)]),
        ("...,...", [(2, 3), (2, 3)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    """Products by index are permutations and matmuls, whatever the indices say."""
    operands = [torch.randn(shape, requires_grad=True) for shape in shapes]
    keys = check(lambda: torch.einsum(equation, *operands), *operands)
    assert made(keys, "matmul") + made(keys, "mul") == len(shapes) - 1
    check(lambda: torch.einsum(equation, operands))


@pytest.mark.parametrize("dims", [1, 2, ([0, 2], [1, 0])])
def test_tensordot(dims: Any) -> None:
    """A tensordot sums over the axes that it is given."""
    shapes = {1: (3, 5), 2: (2, 3, 5)}.get(dims if isinstance(dims, int) else 0, (3, 4, 6))
    a = torch.randn(4, 2, 3, requires_grad=True)
    b = torch.randn(shapes, requires_grad=True)
    assert made(check(lambda: torch.tensordot(a, b, dims=dims), a, b), "matmul") == 1


def test_bilinear() -> None:
    """A bilinear layer is two products."""
    layer = nn.Bilinear(3, 4, 5)
    a, b = torch.randn(2, 6, 3), torch.randn(2, 6, 4)
    assert made(check(lambda: layer(a, b), *layer.parameters()), "matmul") == 2


@pytest.mark.parametrize(
    ("function", "arguments", "word"),
    [
        (torch.einsum, ("ii,ij->j", torch.eye(3), torch.eye(3)), "twice"),
        (torch.einsum, (torch.eye(3), [0, 1], torch.eye(3), [1, 2]), "lists"),
        (torch.chain_matmul, (torch.eye(3), torch.eye(3)), "opaque"),
    ],
)
def test_opaque_calls_say_why(function: Any, arguments: tuple[Any, ...], word: str) -> None:
    """A call without a written-out form runs as it is, and there is a reason."""
    reason = unreached_reason(function.__name__, arguments, {})
    assert reason is not None
    assert word in reason
    with Rewriting():
        torch.testing.assert_close(function(*arguments), function(*arguments))


def test_einsum_of_one_operand_is_left_alone() -> None:
    """A transposition written as einsum hides no product."""
    assert rewrite_of("einsum", ("ij->ji", torch.eye(2)), {}) is None
    assert unreached_reason("einsum", ("ij->ji", torch.eye(2)), {}) is None


def test_same_addresses_for_other_batches() -> None:
    """The calls that a rewrite makes depend on the shape of the model, not of the batch."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 4, 3))
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.einsum("btc,hcd->bthd", x, self.weight).flatten(2)
            return self.attention(x, x, x)[0]

    model = Product()
    first, second = (
        capture(model, lambda m, x=x: m(x), inputs=(x,)).graph
        for x in (torch.randn(1, 1, 4), torch.randn(5, 7, 4))
    )
    assert [op.key for op in first.operations()] == [op.key for op in second.operations()]
