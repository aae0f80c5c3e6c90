# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints: all bits come back, all bytes are accounted for, failures leave nothing."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import nncf
from nncf.compression.packed_file import KEY, size_table
from nncf.errors import CheckpointError, ExportError, MissingDependency, UnsupportedFormat
from nncf.torch import load_packed, packed, save_packed

FILE = "model.safetensors"
DTYPES = list(packed._DTYPES)


def bits_of(tensor):
    return packed._in_memory(tensor).reshape(-1).view(torch.uint8).numpy().tobytes()


def checked_round_trip(state):
    """Save and load; check the bits, the table and its sum. Return the loaded state."""
    table = save_packed(state, FILE)
    assert table.total == Path(FILE).stat().st_size
    assert {row.name for row in table.rows} == set(state)
    loaded = load_packed(FILE)
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bits_of(loaded[name]) == bits_of(tensor), name
    return loaded


def sparse(*shape, level=0.8):
    weight = torch.randn(*shape)
    return torch.where(torch.rand(*shape) < level, torch.zeros(()), weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_dtype(dtype):
    """Tensors of every dtype, rank and density come back to the bit."""
    patterns = torch.randint(0, 2 if dtype == torch.bool else 256, (4, 500 * dtype.itemsize))
    patterns[1:, : 300 * dtype.itemsize] = 0
    full = patterns.to(torch.uint8).reshape(-1).view(dtype).reshape(4, 500)
    state = {"dense": full[0], "all": full, "zeros": full[1:, :300], "scalar": full[0, 0]}
    checked_round_trip(state | {"empty": full[:0], "strided": full.t()[::3]})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(alphabet="a:.é/", min_size=1, max_size=6), unique=True, max_size=6),
    levels=st.lists(st.sampled_from([0.0, 0.3, 0.9, 1.0]), min_size=6, max_size=6),
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=2), min_size=6, max_size=6),
)
def test_any_state_dict(names, levels, shapes):
    """Whatever tensors are called and however large they are, all of them come back."""
    made = zip(names, shapes, levels, strict=False)
    checked_round_trip({name: sparse(tuple(shape), level=level) for name, shape, level in made})


def test_negative_zeros_and_nan():
    """Masked weights have negative zeros: they come back, and cost a bit instead of a word."""
    weight = torch.randn(64, 64) * (torch.rand(64, 64) < 0.2)
    assert (torch.signbit(weight) & (weight == 0)).any()
    weight[0, 0] = float("nan")
    checked_round_trip({"weight": weight})
    (row,) = size_table(FILE).rows
    kept = int((weight != 0).sum())
    assert (row.form, row.dense) == ("signed_bitmask", 64 * 64 * 4)
    assert row.packed == 4 * kept + 512 + -(-(64 * 64 - kept) // 8)


def test_shared_tensors_are_stored_once_and_shared_again():
    """Tied weights take their bytes once, and one tensor comes back under both names."""
    model = nn.ModuleDict({"a": nn.Linear(32, 32), "b": nn.Linear(32, 32)})
    model["b"].weight = model["a"].weight
    loaded = checked_round_trip(model.state_dict())
    assert loaded["a.weight"] is loaded["b.weight"]
    rows = {row.name: row for row in size_table(FILE).rows}
    assert rows["b.weight"].form == "same as a.weight"
    assert (rows["b.weight"].packed, rows["b.weight"].dense) == (0, 0)


def test_views_of_one_memory_keep_their_own_values():
    """Views that begin at one place but are not the same tensor are not mistaken for it."""
    base = torch.randn(6, 6)
    first, conjugate = torch.randn(8, dtype=torch.complex64), torch.randn(3, dtype=torch.complex64)
    views = {"base": base, "transposed": base.t(), "row": base[0], "flat": base.reshape(-1)}
    checked_round_trip(views | {"c": first, "cc": first.conj(), "i": conjugate.conj().imag})


def test_mapped_tensors_do_not_write_to_the_file():
    """What is done to a loaded tensor stays in memory, and saving over a file in use is safe."""
    state = {"dense": torch.randn(1000), "sparse": sparse(100, 100)}
    save_packed(state, FILE)
    before = Path(FILE).read_bytes()
    loaded = load_packed(FILE)
    for tensor in loaded.values():
        tensor.add_(1)
    assert Path(FILE).read_bytes() == before
    again = load_packed(FILE)
    save_packed({"dense": torch.zeros(1000)}, FILE)
    assert torch.equal(again["dense"], state["dense"])


def test_same_state_same_bytes():
    """Saving twice gives the same file."""
    state = {f"layer{index}": sparse(50, 50) for index in range(5)}
    save_packed(state, FILE)
    save_packed(state, "again.safetensors")
    assert Path(FILE).read_bytes() == Path("again.safetensors").read_bytes()


@pytest.mark.parametrize("level", [0.0, 0.02, 0.05, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("size", [1, 30, 300, 3000])
def test_never_larger_than_a_plain_file(level, size):
    """A packed file exceeds the plain safetensors file by its description's frame at most."""
    state = {f"layer{i}": sparse(size, level=level) * (-1) ** i for i in range(8)}
    save_packed(state, FILE)
    safetensors.torch.save_file(state, "plain.safetensors")
    frame = 100
    assert Path(FILE).stat().st_size <= Path("plain.safetensors").stat().st_size + frame


def test_smaller_than_gzip_at_high_levels():
    """At 90 % zeros the packed file is below a sixth of the dense one, and smaller than gzip's."""
    state = {"weight": sparse(512, 512, level=0.9)}
    table = save_packed(state, FILE)
    assert table.dense / table.total > 6
    safetensors.torch.save_file(state, "plain.safetensors")
    assert table.total < len(gzip.compress(Path("plain.safetensors").read_bytes(), 6))


# --- models ------------------------------------------------------------------------------------


def compressed_model(*sections, **top):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 40))
    config = nncf.NNCFConfig.from_dict(
        {"input_info": {"sample_size": [1, 3, 8, 8]}, "compression": list(sections), **top}
    )
    data = [(torch.rand(4, 3, 8, 8), torch.zeros(4)) for _ in range(2)]
    nncf.register_default_init_args(config, data)
    return nncf.create_compressed_model(model, config, dump_graphs=False)


def weights(table):
    return {row.name: row for row in table.rows if row.name in ("0.weight", "3.weight")}


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("overflow_fix", ["enable", "disable"])
def test_quantized_weights_are_stored_as_codes(mode, per_channel, overflow_fix):
    """Weights of a stripped INT8 model take 8 bits each, 7 on half of the grid, to the bit."""
    section = {"mode": mode, "per_channel": per_channel}
    controller, _ = compressed_model(
        {"algorithm": "quantization", "weights": section, "overflow_fix": overflow_fix}
    )
    stripped = controller.strip()
    table = save_packed(stripped, FILE)
    assert table.total == Path(FILE).stat().st_size
    for row in weights(table).values():
        assert row.form == "codes"
        codes = row.dense / 32 * (7 if overflow_fix == "enable" else 8)
        assert codes <= row.packed <= codes + 6 * max(row.shape[0], 1)
    state = load_packed(FILE)
    for name, tensor in stripped.state_dict().items():
        assert bits_of(state[name]) == bits_of(tensor)
    stripped.load_state_dict(state)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_weights_of_few_bits_take_as_many(mode, bits):
    """A weight of b bits takes b bits an element, whatever the zero points, and comes back."""
    controller, _ = compressed_model(
        {"algorithm": "quantization", "weights": {"mode": mode, "bits": bits}},
        target_device="TRIAL",
    )
    stripped = controller.strip()
    table = save_packed(stripped, FILE)
    for row in weights(table).values():
        assert row.form in ("codes", "bitmask_codes")  # zeros of 5 and more bits may be worth it
        assert row.packed <= row.dense / 32 * bits + 6 * row.shape[0] + 1
    state = load_packed(FILE)
    for name, tensor in stripped.state_dict().items():
        assert bits_of(state[name]) == bits_of(tensor)


@pytest.mark.parametrize("bits", [4, 8])
def test_sparse_and_quantized_weights(bits):
    """Zeros cost a bit and all else its bits when a model is sparse and quantized."""
    controller, _ = compressed_model(
        {
            "algorithm": "magnitude_sparsity",
            "sparsity_init": 0.8,
            "params": {"sparsity_target": 0.8, "sparsity_level_setting_mode": "local"},
        },
        {"algorithm": "quantization", "weights": {"bits": bits}, "overflow_fix": "disable"},
        target_device="TRIAL",
    )
    stripped = controller.strip()
    table = save_packed(stripped, FILE)
    state = stripped.state_dict()
    for name, row in weights(table).items():
        assert row.form == "bitmask_codes"
        kept, count = int((state[name] != 0).sum()), state[name].numel()
        assert row.packed <= -(-kept * bits // 8) + -(-count // 8) + 4 * row.shape[0]
    for name, tensor in load_packed(FILE).items():
        assert bits_of(tensor) == bits_of(state[name])


def test_a_model_in_training_is_stored_as_it_is(caplog):
    """The weights in training are not on their grid yet: stored whole, with a warning."""
    _, model = compressed_model({"algorithm": "quantization"})
    table = save_packed(model, FILE)
    assert {row.form for row in weights(table).values()} == {"dense"}
    assert "strip() it first" in caplog.text


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ([torch.ones(2)], "not list"),
        ({"a": 3}, "'a' is int, not a tensor"),
        ({3: torch.ones(2)}, "3 is Tensor"),
        ({"a": torch.eye(3).to_sparse()}, "layout torch.sparse_coo"),
        ({"a": torch.ones(2, device="meta")}, "has no values yet"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "the dtype torch.complex128"),
        ({"__metadata__": torch.ones(2)}, "has the name under which"),
    ],
    ids=range(7),
)
def test_what_cannot_be_stored_is_refused(state, reason):
    """Anything but dense tensors with values is refused by name, and nothing is written."""
    with pytest.raises(UnsupportedFormat, match=reason):
        save_packed(state, FILE)
    assert list(Path().iterdir()) == []


def test_a_failed_write_leaves_the_old_file(monkeypatch):
    """When the disk fails, the file of before stands unchanged and nothing is left beside it."""
    save_packed({"a": torch.ones(3)}, FILE)
    before = Path(FILE).read_bytes()

    def failing(arrays, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", failing)
    with pytest.raises(ExportError, match="No space left on device"):
        save_packed({"a": torch.zeros(3)}, FILE)
    assert Path(FILE).read_bytes() == before
    assert list(Path().iterdir()) == [Path(FILE)]


def test_an_unwritable_folder_is_an_export_error():
    """A folder that cannot be made is named."""
    Path("file").write_text("")
    with pytest.raises(ExportError, match="Cannot write"):
        save_packed({"a": torch.ones(3)}, "file/model.safetensors")


def test_without_safetensors_the_package_is_named(monkeypatch):
    """The error names the package to install."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingDependency, match="pip install safetensors"):
        save_packed({}, FILE)


def rewritten(change):
    """Save a sparse tensor, change its header's JSON, and put it back."""
    save_packed({"a": sparse(40, 40), "b": torch.ones(3)}, FILE)
    data = Path(FILE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    description = json.loads(header["__metadata__"][KEY])
    change(header, description)
    if KEY in header["__metadata__"]:
        header["__metadata__"][KEY] = json.dumps(description)
    text = json.dumps(header).encode()
    Path(FILE).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h, d: d.update(version=2), "version 2, this release reads 1"),
        (lambda h, d: d["tensors"]["a"].update(form="triangle"), 'the form "triangle"; this'),
        (lambda h, d: d["tensors"]["a"].update(shape=[40, 41]), '"a" is damaged: a mask of 200'),
        (lambda h, d: d["tensors"]["a"].update(dtype="F64"), "not of the dtype F64"),
        (lambda h, d: d["tensors"]["a"].update(dtype="F31"), "the packed tensors is damaged"),
        (lambda h, d: d["tensors"]["a"].update(lowest=10**30), "the packed tensors is damaged"),
        (lambda h, d: h["a::mask"].update(dtype="U16", shape=[100]), '"a" is damaged'),
        (lambda h, d: d["tensors"].pop("a"), "which its description does not know"),
        (lambda h, d: d.update(same={"c": "z"}), '"c" is said to be the same as "z"'),
        (lambda h, d: d.update(separator=""), "its description is damaged"),
        (lambda h, d: d.clear(), "its description is damaged"),
        (lambda h, d: h["__metadata__"].clear(), "of another program"),
        (lambda h, d: h.update({"a::role": h.pop("a::mask")}), "lacks: mask"),
        (lambda h, d: h["b"].update(shape=[4]), '"b" has 12 bytes for F32'),
        (lambda h, d: h["b"].pop("dtype"), 'the entry of "b"'),
        (lambda h, d: h.pop("b"), "where its header tells of"),
        (lambda h, d: h["a::mask"].update(data_offsets=[0, 200]), "a::mask|ffset"),
    ],
    ids=range(17),
)
def test_a_damaged_description_is_noticed(change, reason):
    """A header that contradicts itself or the file is refused with what is wrong."""
    rewritten(change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_packed(FILE)
    assert "save it again" in str(caught.value)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_file_that_is_cut_off_is_noticed(kept):
    """A file that ends early is refused, wherever it ends."""
    save_packed({"a": sparse(40, 40)}, FILE)
    Path(FILE).write_bytes(Path(FILE).read_bytes()[:kept])
    for read in (load_packed, size_table):
        with pytest.raises(CheckpointError, match=FILE):
            read(FILE)


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 a zip", b"{}", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 64]
)
def test_files_of_other_kinds_are_refused(content):
    """What is no safetensors file is said not to be one."""
    Path(FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_packed(FILE)


def test_missing_files_and_folders_are_refused():
    """A path without a file is a CheckpointError that names it."""
    for path in ("none.safetensors", "."):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_packed(path)


def test_plain_files_of_others_can_be_measured():
    """The table of sizes is also made for a safetensors file without packed tensors."""
    safetensors.torch.save_file({"a::mask": torch.ones(3), "b": torch.ones(2, 2)}, FILE)
    table = size_table(FILE)
    assert [(row.name, row.packed, row.form) for row in table.rows] == [
        ("a::mask", 12, "dense"),
        ("b", 16, "dense"),
    ]
    assert table.total == Path(FILE).stat().st_size


def test_the_table_prints_every_byte():
    """The printed table has a line for each tensor, the header and the total."""
    save_packed({"a": sparse(40, 40), "n": torch.tensor(3)}, FILE)
    lines = [line.split() for line in str(size_table(FILE)).splitlines()]
    numbers = [int(line[-2 if line[0] == "n" else -4].replace(",", "")) for line in lines[-2:-1]]
    assert lines[1][:4] == ["a", "40×40", "F32", "6,400"]
    assert lines[2][:2] == ["n", "number"]
    stored = [int(lines[1][4].replace(",", "")), int(lines[2][4]), numbers[0]]
    assert sum(stored) == Path(FILE).stat().st_size == int(lines[-1][2].replace(",", ""))


def test_the_reader_does_not_need_our_writer():
    """The documented layout is enough to read a tensor with numpy and safetensors alone."""
    weight = sparse(30, 50)
    save_packed({"w": weight}, FILE)
    arrays = safetensors.torch.load_file(FILE)
    kept = np.unpackbits(arrays["w::mask"].numpy(), count=1500, bitorder="little").astype(bool)
    back = np.zeros(1500, np.float32)
    back[kept] = arrays["w::values"].numpy()
    assert np.array_equal(back.reshape(30, 50), weight.numpy())
