# SPDX-License-Identifier: Apache-2.0
"""Random numbers from a key: uniform, independent, and the same however they are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nncf.torch import kernels, random_kernels


def keys(count: int) -> list[torch.Tensor]:
    key, found = torch.tensor([2024]), []
    for _ in range(count):
        found.append(key.clone())
        random_kernels.next_key(key)
    return found


def by_numpy(key: int, count: int) -> np.ndarray:
    """The formula once more, with unsigned integers that wrap."""
    first, second = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32 & 0xFFFFFFFF)
    h = np.arange(count, dtype=np.uint32) + first
    h = (h ^ h >> np.uint32(16)) * np.uint32(0x7FEB352D)
    h = (h ^ h >> np.uint32(15)) + second
    h = h * np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return (h.view(np.int32) >> 9).astype(np.float64) * 2.0**-23 + 2.0**-24 + 0.5


@pytest.mark.parametrize("key", [0, 1, -1, 1234567890123456789, -9223372036854775808])
def test_all_ways_give_the_same_bits(key: int) -> None:
    """C, plain PyTorch, pieces of it and the compiler's view agree with numpy to the last bit."""
    shape = (3, 100_003)
    tensor, expected = torch.tensor([key]), by_numpy(key, 300_009)
    assert np.array_equal(kernels.uniform(tensor, shape).numpy().ravel(), expected)
    assert np.array_equal(random_kernels.uniform_reference(tensor, shape).ravel(), expected)
    assert np.array_equal(random_kernels.uniform_in_pieces(tensor, shape).ravel(), expected)
    compiled = torch.compile(
        lambda k: kernels.uniform(k, shape), backend="aot_eager", fullgraph=True
    )
    assert np.array_equal(compiled(tensor).ravel(), expected)


def test_without_a_compiler_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library cannot be built, the numbers are the same."""
    key, expected = torch.tensor([5]), kernels.uniform(torch.tensor([5]), (7, 11))
    monkeypatch.setitem(kernels._made, "random", None)
    assert torch.equal(kernels.uniform(key, (7, 11)), expected)


def test_numbers_are_uniform_and_open() -> None:
    """Mean, variance and the share below each decile fit U(0, 1); the ends do not occur."""
    for key in keys(5):
        u = kernels.uniform(key, (1_000_000,))
        assert 0 < float(u.min()) < 1e-4
        assert 1 - 1e-4 < float(u.max()) < 1
        assert float(u.mean()) == pytest.approx(0.5, abs=2e-3)
        assert float(u.var()) == pytest.approx(1 / 12, abs=1e-3)
        counts = torch.histc(u, 10, 0, 1)
        assert (counts / 1e5 - 1).abs().max() < 0.015


def test_neighbours_and_successive_keys_are_uncorrelated() -> None:
    """No correlation beyond chance: along the tensor, from key to key, and of shifted tensors."""
    draws = torch.stack([kernels.uniform(key, (100_000,)) for key in keys(20)]) - 0.5
    chance = 5 * (1 / 12) / 100_000**0.5
    for shift in (1, 2, 3, 64):
        assert (draws[:, shift:] * draws[:, :-shift]).mean(1).abs().max() < chance
    between = (draws @ draws.T) / 100_000
    between.fill_diagonal_(0)
    assert between.abs().max() < chance
    per_element = draws.mean(0) * 20**0.5 * 12**0.5  # each place on its own: a normal variable
    assert float(per_element.std()) == pytest.approx(1, abs=0.02)


def test_keys_move_on_in_place() -> None:
    """The next key is another one, the same each time, in the same tensor."""
    one, other = torch.tensor([3]), torch.tensor([3])
    random_kernels.next_key(one)
    random_kernels.next_key(other)
    assert int(one) == 3 * 6364136223846793005 + 1442695040888963407 - (1 << 64)
    assert torch.equal(one, other)
