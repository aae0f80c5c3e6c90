# SPDX-License-Identifier: Apache-2.0
"""``load_state``: what matches is loaded, what does not is told, old names are understood."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

import nncf


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(torch.relu(self.conv(x)))
        return self.head(x.mean((2, 3)))


def compressed(seed: int = 0, **section: Any) -> nn.Module:
    torch.manual_seed(seed)
    config = nncf.NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, 1, 6, 6]},
            "compression": {"algorithm": "quantization", **section},
        }
    )
    batches = [(torch.rand(4, 1, 6, 6), torch.zeros(4)) for _ in range(2)]
    config = nncf.register_default_init_args(config, batches)
    model: nn.Module = nncf.create_compressed_model(Small(), config, dump_graphs=False)[1]
    return model


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("prefix", ["module.", "nncf_module.", "_nncf.module.", "_orig_mod."])
@pytest.mark.parametrize("wrap", [False, True])
def test_prefixes_do_not_matter(prefix: str, wrap: bool) -> None:
    """Names of wrappers are left out of account, in the checkpoint and in the model."""
    model, other = compressed(0), compressed(1)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    target = nn.DataParallel(other) if wrap else other
    assert nncf.load_state(target, state, is_resume=True) == len(state)
    assert equal(values(other), values(model))


def test_prefixes_inside_names() -> None:
    """A wrapper's name is left out in the middle of a key too."""
    model, other = Small(), Small()
    state = {k.replace("block.", "block.module."): v for k, v in model.state_dict().items()}
    nncf.load_state(other, state, is_resume=True)
    assert equal(values(other), values(model))


def test_names_that_would_collide_are_kept() -> None:
    """A model of which two keys differ in a wrapper's name alone loads each into its own."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.module = nn.ModuleDict({"layer": nn.Linear(2, 2)})

    model, other = Both(), Both()
    nncf.load_state(other, model.state_dict(), is_resume=True)
    assert equal(values(other), values(model))


def test_uncompressed_weights_start_a_compressed_model(caplog: pytest.LogCaptureFixture) -> None:
    """Weights of a plain checkpoint load without complaint; quantizers stay as they are."""
    plain, model = Small(), compressed()
    before = values(model)
    with caplog.at_level(logging.INFO, "nncf"):
        count = nncf.load_state(model, plain.state_dict())
    assert count == len(plain.state_dict())
    after = values(model)
    for key, value in after.items():
        expected = before[key] if key.startswith("compression.") else plain.state_dict()[key]
        assert torch.equal(value, expected)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"Loaded {count}/{len(after)} parameters" in caplog.text


def broken(state: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    state = dict(state)
    if how == "Missing":
        del state["head.bias"]
    elif how == "Unexpected":
        state["stranger"] = torch.zeros(1)
    else:
        state["head.bias"] = torch.zeros(7)
    return state


@pytest.mark.parametrize("how", ["Missing", "Unexpected", "Size mismatched"])
def test_resume_demands_an_exact_match(how: str) -> None:
    """With is_resume the error lists the keys by status, and nothing has changed."""
    model = compressed()
    before = values(model)
    state = broken(values(compressed(1)), how)
    key = "stranger" if how == "Unexpected" else "head.bias"
    with pytest.raises(nncf.CheckpointError) as caught:
        nncf.load_state(model, state, is_resume=True)
    assert f'Error(s) when loading model parameters:\n\t{how} key(s):\n\t\t"{key}' in str(
        caught.value
    )
    assert isinstance(caught.value, RuntimeError)
    assert equal(values(model), before)


@pytest.mark.parametrize("how", ["Unexpected", "Size mismatched"])
def test_otherwise_mismatches_are_a_warning(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without is_resume what matches is loaded and the rest is listed in a warning."""
    model, other = compressed(), compressed(1)
    with caplog.at_level(logging.WARNING, "nncf"):
        count = nncf.load_state(model, broken(values(other), how))
    assert f"{how} key(s)" in caplog.text
    assert count == len(values(other)) - (how == "Size mismatched")
    assert torch.equal(model.state_dict()["conv.weight"], other.state_dict()["conv.weight"])


def test_ignored_keys_are_neither_loaded_nor_missed() -> None:
    """keys_to_ignore takes keys or their first parts, with or without wrappers' names."""
    model, other = compressed(), compressed(1)
    before = values(model)
    state = {"module." + key: value for key, value in other.state_dict().items()}
    del state["module.head.weight"]
    count = nncf.load_state(model, state, is_resume=True, keys_to_ignore=["head", "conv.bias"])
    assert count == len(before) - 3
    assert torch.equal(model.state_dict()["conv.bias"], before["conv.bias"])
    assert torch.equal(model.state_dict()["conv.weight"], other.state_dict()["conv.weight"])


@pytest.mark.parametrize("state", [
    [("conv.weight", 1)],
    {"state_dict": {}, "epoch": 3},
    {"conv.weight": [1.0, 2.0]},
    {3: torch.zeros(1)},
])  # fmt: skip
def test_what_is_no_state_dict_is_refused(state: Any) -> None:
    """Anything but tensors by name is a CheckpointError that says what came."""
    with pytest.raises(nncf.CheckpointError, match="load_state"):
        nncf.load_state(Small(), state)


def test_extra_state_of_modules_is_loaded() -> None:
    """What modules save by get_extra_state may be anything."""

    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self) -> dict[str, int]:
            return {"count": self.count}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    saved, loaded = Counting(2, 2), Counting(2, 2)
    saved.count = 5
    nncf.load_state(loaded, saved.state_dict(), is_resume=True)
    assert loaded.count == 5


def test_loaded_quantizers_count_as_initialized() -> None:
    """A quantizer whose range is loaded is initialized."""
    trained = compressed()
    model = compressed(initializer={"range": {"num_init_samples": 0}})
    ops = list(model.compression.ops.values())
    assert not any(op.initialized for op in ops)
    nncf.load_state(model, trained.state_dict(), is_resume=True)
    assert all(op.initialized for op in ops)


# --- keys of releases 1.x to 2.6 -----------------------------------------------------------------

RELU, MEAN = "Small/relu_0", "Small/mean_0"
INNER = "Small/Sequential[block]/ReLU[1]/relu_0"


def old_state(model: nn.Module, era: str) -> dict[str, torch.Tensor]:
    """Return the model's state as earlier releases wrote it."""
    state = {}
    for key, value in model.state_dict().items():
        if not key.startswith("compression.ops."):
            state["nncf_module." * (era != "2.6") + key] = value
            continue
        place, _, parameter = key.removeprefix("compression.ops.").rpartition(".")
        address, _, side = place.partition("|")
        if side == "WEIGHT":
            layer = {"conv": "conv", "block": "block.0", "head": "head"}[
                address.split("[")[1].split("]")[0]
            ]
            base = "nncf_module." * (era != "2.6") + f"{layer}.pre_ops.0.op"
        elif era == "1.3":
            base = f"activation_quantizers.{address}".replace("relu_0", "RELU_0")
        else:
            base = "_nncf." * (era == "2.6") + f"external_quantizers.{address}|{side}"
        if parameter == "signed":
            state[f"{base}.signed_tensor"] = value.int().reshape(1)
            state[f"{base}._num_bits"] = torch.tensor([8])
            state[f"{base}.enabled"] = torch.tensor([1])
        else:
            state[f"{base}.{parameter}"] = (
                value.reshape(()) if era == "1.3" and value.numel() == 1 else value
            )
    return state


@pytest.mark.parametrize("era", ["1.3", "1.7", "2.6"])
def test_old_names_of_quantizers_load(era: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every key of an old checkpoint finds its place, with one warning."""
    model, other = compressed(0), compressed(1)
    state = old_state(model, era)
    assert not any(key.startswith("compression") for key in state)
    with caplog.at_level(logging.WARNING, "nncf"):
        count = nncf.load_state(other, state, is_resume=True)
    assert count == len(model.state_dict())
    assert equal(values(other), values(model))
    assert caplog.text.count("names of an earlier release") == 1


def test_old_class_names_and_joined_places() -> None:
    """``NNCFConv2d`` means ``Conv2d``; of ``A;B`` any place will do."""
    model, other = compressed(0), compressed(1)
    state = old_state(model, "2.6")
    old = f"_nncf.external_quantizers.{INNER}|OUTPUT"
    new = f"_nncf.external_quantizers.Small/NNCFConv2d[other]/conv2d_0|INPUT0;{INNER}|OUTPUT"
    found = [key for key in state if key.startswith(old)]
    assert found
    for key in found:
        state[key.replace(old, new)] = state.pop(key)
    nncf.load_state(other, state, is_resume=True)
    assert equal(values(other), values(model))


def test_old_quantizer_without_a_place_is_unexpected() -> None:
    """An old key for which no quantizer stands here is reported, not dropped."""
    model = compressed()
    state = old_state(model, "2.6")
    state["_nncf.external_quantizers.Small/sigmoid_0|OUTPUT.scale"] = torch.ones(1)
    with pytest.raises(nncf.CheckpointError, match=r"Unexpected.*\n.*sigmoid_0"):
        nncf.load_state(model, state, is_resume=True)


def test_old_quantizer_of_other_bits_is_a_mismatch() -> None:
    """A saved number of bits that differs from the configuration's is told."""
    model = compressed()
    state = old_state(model, "2.6")
    state["conv.pre_ops.0.op._num_bits"] = torch.tensor([4])
    with pytest.raises(nncf.CheckpointError, match="4 bits in place of 8"):
        nncf.load_state(model, state, is_resume=True)


def test_deprecated_ways_of_create_compressed_model() -> None:
    """A bare state dict as resuming_state_dict or compression_state is loaded, with a warning."""
    model = compressed()
    config = nncf.NNCFConfig.from_dict(
        {"input_info": {"sample_size": [1, 1, 6, 6]}, "compression": {"algorithm": "quantization"}}
    )
    state = old_state(model, "2.6")
    with pytest.warns(DeprecationWarning, match="resuming_state_dict"):
        _, one = nncf.create_compressed_model(
            Small(), config, dump_graphs=False, resuming_state_dict=state
        )
    _, other = nncf.create_compressed_model(
        Small(), config, {"state_dict": state}, dump_graphs=False
    )
    assert equal(values(one), values(model))
    assert equal(values(other), values(model))
