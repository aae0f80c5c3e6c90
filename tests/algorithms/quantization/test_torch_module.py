# SPDX-License-Identifier: Apache-2.0
"""The PyTorch quantizer as a module: its state, its switches, and what may be done with it."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch

from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.torch import FakeQuantizer
from nncf.errors import ExportError
from tests.quantizers import SCHEMES, X, made


def test_state_dict_is_linear_and_small():
    """The state holds scale and signed, or low and range, whatever is trained."""
    assert set(made(Scheme()).state_dict()) == {"scale", "signed"}
    assert set(made(Scheme(mode="asymmetric")).state_dict()) == {"input_low", "input_range"}
    quantizer = made(Scheme(logarithm_scale=True), high=0.3, low=-0.3)
    assert quantizer.state_dict()["scale"].item() == pytest.approx(0.3)
    assert [name for name, _ in quantizer.named_parameters()] == ["logarithm_of_scale"]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_state_is_restored_to_the_bit(scheme):
    """A saved range loads exactly, marks the quantizer initialized, and keeps the sign."""
    for high in (0.123, 7.7, 1e-5, 33.0):
        first = made(scheme, low=-high / 3, high=high)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = FakeQuantizer(scheme)
        assert not second.initialized
        second.load_state_dict(torch.load(file, weights_only=True))
        assert second.initialized
        for mine, its in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(mine, its)
        assert first.level_range == second.level_range


def test_missing_state_is_reported_under_its_own_name():
    """Strict loading names the linear key that is missing."""
    quantizer = FakeQuantizer(Scheme(logarithm_scale=True))
    with pytest.raises(RuntimeError, match=r'Missing key.*"scale"'):
        quantizer.load_state_dict({"signed": torch.tensor(True)})
    assert not quantizer.initialized


def test_disabled_quantizer_is_the_identity():
    """Disabled, it passes its input, trains nothing and exports as nothing."""
    quantizer = made(Scheme())
    quantizer.enabled = False
    x = torch.randn(5, requires_grad=True)
    assert torch.equal(quantizer(x), x)
    quantizer(x).square().sum().backward()
    assert torch.equal(x.grad, 2 * x)
    assert torch.equal(quantizer.scale.grad, torch.zeros(1))  # none at all would stop DDP
    assert isinstance(quantizer.native(), torch.nn.Identity)
    assert torch.equal(quantizer.bake(x), x)
    quantizer.enabled = True
    assert not torch.equal(quantizer(x), x)


def test_observer_sees_and_input_passes():
    """While observing, inputs go to the observer, detached, and come out unchanged."""
    quantizer, seen = made(Scheme()), []
    quantizer.observer = seen.append
    x = torch.randn(5, requires_grad=True)
    assert quantizer(x) is x
    assert torch.equal(seen[0], x)
    assert not seen[0].requires_grad


def test_negative_and_zero_parameters_still_train():
    """A scale that crossed zero quantizes by its magnitude and can find its way back."""
    quantizer = made(Scheme(signed=True))
    x = torch.tensor(X)
    expected = quantizer(x).detach()
    quantizer(x).sum().backward()
    gradient = quantizer.scale.grad.clone()
    with torch.no_grad():
        quantizer.scale.neg_()
    quantizer.scale.grad = None
    out = quantizer(x)
    out.sum().backward()
    assert torch.equal(out, expected)
    assert torch.equal(quantizer.scale.grad, -gradient)
    with torch.no_grad():
        quantizer.scale.zero_()
    quantizer.scale.grad = None
    out = quantizer(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert quantizer.scale.grad.item() != 0


def test_training_finds_the_range():
    """Gradient descent on the quantization error shrinks a range that is far too wide."""
    torch.manual_seed(0)
    x = torch.randn(4000)
    for mode, low in (("symmetric", -30.0), ("asymmetric", -3.0)):
        quantizer = made(Scheme(mode=mode, signed=True, bits=4), low=low, high=30.0)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.3)
        for _ in range(150):
            optimizer.zero_grad()
            (quantizer(x) - x).square().mean().backward()
            optimizer.step()
        assert (quantizer(x) - x).square().mean() < 0.05


def test_copies_are_independent():
    """Deepcopy and pickle give quantizers that compute the same and share nothing."""
    quantizer, x = made(Scheme(signed=True), high=2.0), torch.tensor(X)
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(twin(x), quantizer(x))
        twin.set_range(torch.tensor(0.0), torch.tensor(9.0))
        assert quantizer.scale.item() == 2.0
        assert twin.initialized


def test_bake_puts_weights_on_the_grid():
    """A baked weight is what the forward pass computes with, and a fixed point."""
    scheme = Scheme(signed=True, half_range=True, per_channel=True, channel_axis=0, weight=True)
    weight = torch.nn.Parameter(torch.randn(6, 3, 3, 3))
    quantizer = made(scheme, (6, 1, 1, 1), low=-torch.ones(6), high=torch.rand(6) + 0.5)
    baked = quantizer.bake(weight)
    assert not baked.requires_grad
    assert torch.equal(baked, quantizer(weight))
    assert torch.equal(quantizer.native()(baked), baked)


def test_native_refuses_more_than_8_bits():
    """Grids that the 8-bit operators cannot express are refused, not approximated."""
    with pytest.raises(ExportError, match="at most 8 bits"):
        made(Scheme(bits=9, signed=True)).native()


def test_describe_is_plain_data():
    """The description can be written as JSON and tells levels and bounds."""
    facts = made(Scheme(signed=True), high=0.5, low=-0.5).describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["levels"] == [-128, 127]
    assert facts["maximum"] == 0.5


def test_repr_teaches():
    """The repr says bits, codes, values and whether the range is set."""
    assert "codes -128…127 for values in [-1.008, 1]" in repr(made(Scheme(signed=True)))
    assert "not initialized" in repr(FakeQuantizer(Scheme()))


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[6]], ids=str)
def test_torch_export_of_the_native_form(scheme):
    """torch.export takes the native module and keeps its bits."""
    native, x = made(scheme).native(), torch.randn(2, 3, 4)
    program = torch.export.export(native, (x,))
    assert torch.equal(program.module()(x), native(x))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"aten.fake_quantize_per_tensor_affine.default"}


def test_torch_export_of_the_trainable_form():
    """torch.export also takes the quantizer as it is, without compiled kernels inside."""
    quantizer, x = made(Scheme(signed=True)).eval(), torch.randn(2, 3, 4)
    program = torch.export.export(quantizer, (x,))
    assert torch.equal(program.module()(x), quantizer(x))


def test_jit_trace_records_operations():
    """torch.jit.trace sees operations that depend on the input."""
    quantizer = made(Scheme(signed=True))
    traced = torch.jit.trace(quantizer, torch.randn(5))
    x = torch.tensor(X)
    assert torch.equal(traced(x), quantizer(x))


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[6]], ids=str)
def test_compiles_as_one_graph(scheme):
    """torch.compile(fullgraph=True) takes forward and backward, with the same results."""
    quantizer = made(scheme)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    x = torch.randn(50, requires_grad=True)
    out = compiled(x)
    out.sum().backward()
    found = [x.grad.clone(), *[parameter.grad.clone() for parameter in quantizer.parameters()]]
    x.grad = None
    quantizer.zero_grad()
    expected = quantizer(x)
    expected.sum().backward()
    assert torch.equal(out, expected)
    for mine, its in zip(
        found, [x.grad, *[parameter.grad for parameter in quantizer.parameters()]], strict=True
    ):
        torch.testing.assert_close(mine, its)
