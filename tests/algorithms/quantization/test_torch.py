# SPDX-License-Identifier: Apache-2.0
"""The PyTorch quantizer: its mathematics, its bits, its state, and what may be done with it."""

from __future__ import annotations

import copy
import io
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nncf.algorithms.quantization import formula
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.torch import FakeQuantizer
from nncf.errors import DataError, ExportError
from nncf.torch import kernels

X = [-1.2, -0.5, -0.003, 0.0, 0.26, 0.5, 0.99, 1.7]


@pytest.fixture(params=["eager", "native"])
def way(request):
    """Each way to compute on the processor; skips where there is no compiler."""
    kernels.use(request.param)
    if kernels.way_for(torch.ones(1)) != request.param:
        pytest.skip("no C compiler on this machine")
    yield request.param
    kernels.use(None)


def made(scheme, shape=(1,), *, low=-1.0, high=1.0):
    quantizer = FakeQuantizer(scheme, shape)
    quantizer.set_range(torch.as_tensor(low), torch.as_tensor(high))
    return quantizer


def reference_grid(quantizer):
    """The float64 grid of formula.py for the quantizer's parameters."""
    with torch.no_grad():
        span = quantizer._span_parameter
        span = (span.exp() if quantizer.scheme.logarithm_scale else span).double().numpy()
    if quantizer.scheme.mode == "symmetric":
        return formula.symmetric_grid(quantizer.scheme, span, signed=quantizer.is_signed)
    low = quantizer.input_low.detach().double().numpy()
    return formula.asymmetric_grid(quantizer.scheme, low, span)


SCHEMES = [
    Scheme(signed=True),
    Scheme(signed=False),
    Scheme(signed=True, narrow_range=True),
    Scheme(signed=True, half_range=True),
    Scheme(signed=True, bits=4),
    Scheme(signed=False, bits=2),
    Scheme(mode="asymmetric"),
    Scheme(mode="asymmetric", half_range=True),
    Scheme(mode="asymmetric", bits=4),
    Scheme(signed=True, logarithm_scale=True),
    Scheme(mode="asymmetric", logarithm_scale=True),
    Scheme(signed=True, lr_multiplier=3.0),
]
LAYOUTS = {  # name: shape of the tensor, shape of the parameters, how the tensor lies in memory
    "vector": ((4097,), (1,), lambda x: x),
    "matrix": ((33, 65), (1,), lambda x: x.t().contiguous().t()),
    "channels": ((3, 5, 9, 11), (1, 5, 1, 1), lambda x: x),
    "channels last": (
        (3, 5, 9, 11),
        (1, 5, 1, 1),
        lambda x: x.contiguous(memory_format=torch.channels_last),
    ),
    "weight": ((7, 3, 3, 3), (7, 1, 1, 1), lambda x: x),
    "weight of a transposed convolution": ((3, 7, 2, 2), (1, 7, 1, 1), lambda x: x),
    "linear": ((6, 1031), (6, 1), lambda x: x),
    "holes": ((4, 6, 10), (1, 6, 1), lambda x: x[:, :, ::2]),
    "one channel": ((4, 1, 5), (1, 1, 1), lambda x: x),
    "large": ((3, 70001), (1,), lambda x: x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_and_gradients_are_those_of_the_formula(way, scheme, layout):
    """Forward and all gradients equal formula.py, for each grid, layout and way."""
    size, shape, lay = LAYOUTS[layout]
    if max(shape) > 1:
        axis = shape.index(max(shape))
        scheme = Scheme.from_state({**scheme.to_state(), "per_channel": True, "channel_axis": axis})
    generator = torch.Generator().manual_seed(1)
    x = lay(torch.randn(size, generator=generator)).requires_grad_()
    gradient = torch.randn(x.shape, generator=generator)
    low = -torch.rand(shape, generator=generator) - 0.5
    quantizer = made(scheme, shape, low=low, high=torch.rand(shape, generator=generator) + 0.5)
    out = quantizer(x)
    out.backward(gradient)

    grid = reference_grid(quantizer)
    x64, g64 = x.detach().double().numpy(), gradient.double().numpy()
    expected = formula.quantize(x64, grid)
    # a value within float32 rounding of half-way may take either neighbour
    scaled = x64 / grid.step
    tie = np.abs(scaled - np.floor(scaled) - 0.5) < 1e-4
    allowed = np.where(tie, 1.01 * grid.step, 1e-6)
    assert (np.abs(out.detach().numpy() - expected) <= allowed).all()
    found = formula.gradients(g64, x64, grid, symmetric=scheme.mode == "symmetric")
    np.testing.assert_allclose(x.grad.numpy(), found.x, atol=1e-7)

    factor = scheme.lr_multiplier or 1.0
    if scheme.logarithm_scale:
        factor = factor * quantizer._span_parameter.detach().exp().numpy()
    tolerance = 2e-5 * np.abs(g64).sum() / max(shape) + 2 * np.abs(g64 * tie).sum() / grid.intervals
    span = quantizer._span_parameter.grad.numpy()
    assert np.abs(span - found.span * factor).max() <= tolerance * np.max(factor)
    if scheme.mode == "asymmetric":
        low = quantizer.input_low.grad.numpy()
        assert np.abs(low - found.low * (scheme.lr_multiplier or 1.0)).max() <= tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_is_kept(way, layout):
    """The result lies in memory like any elementwise result of the input."""
    size, shape, lay = LAYOUTS[layout]
    x = lay(torch.randn(size))
    scheme = Scheme(signed=True, per_channel=max(shape) > 1)
    assert made(scheme, shape)(x).stride() == (x * 2).stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", SCHEMES[:10], ids=str)
def test_native_operators_give_the_same_bits(way, scheme, layout):
    """PyTorch's own operators, as deployed, give every bit of what was trained."""
    size, shape, lay = LAYOUTS[layout]
    scheme = Scheme.from_state({**scheme.to_state(), "per_channel": max(shape) > 1})
    quantizer = made(scheme, shape, low=-torch.rand(shape) - 0.3, high=torch.rand(shape) + 0.3)
    x = lay(torch.randn(size))
    with torch.no_grad():
        ours, native = quantizer(x), quantizer.native()(x)
    assert torch.equal(ours, native)
    assert torch.equal(torch.signbit(ours), torch.signbit(native))


def test_ways_agree_in_every_bit():
    """The C kernels and the plain operations give the same forward bits."""
    x = torch.randn(3, 40, 40, 41) * 3
    for scheme in SCHEMES:
        quantizer = made(scheme, low=-0.7, high=1.3)
        results = []
        for name in ("eager", "native"):
            kernels.use(name)
            results.append(quantizer(x))
        kernels.use(None)
        assert torch.equal(*results)


ranges = st.tuples(st.floats(-100, 100, width=32), st.floats(2**-10, 100, width=32))


@settings(max_examples=60, deadline=None)
@given(
    range_=ranges,
    bits=st.integers(2, 8),
    mode=st.sampled_from(["symmetric", "asymmetric"]),
    signed=st.booleans(),
    half=st.booleans(),
)
def test_properties_of_every_range(range_, bits, mode, signed, half):
    """Zero is exact, repeating changes nothing, order is kept, codes stay on the grid."""
    scheme = Scheme(bits=bits, mode=mode, signed=signed, half_range=half and bits > 2)
    quantizer = made(scheme, low=range_[0], high=range_[0] + range_[1])
    bound = abs(range_[0]) + range_[1]
    x = torch.linspace(-1.5 * bound, 1.5 * bound, 2001)
    with torch.no_grad():
        out = quantizer(x)
        assert quantizer(torch.zeros(1)).item() == 0.0
        assert torch.equal(quantizer(out), out)
        assert torch.equal(quantizer.native()(x), out)
        assert (out.diff() >= 0).all()
    step, zero_point, low, high = quantizer.quantization_parameters()
    codes = out.double() / step.double() + zero_point
    assert (codes - codes.round()).abs().max() < 1e-4
    assert codes.round().min() >= low
    assert codes.round().max() <= high
    assert low <= zero_point.item() <= high


def test_bounds_of_the_range_count_as_inside():
    """The greatest weight of a channel, on which the range stands, gets its gradient."""
    weight = torch.randn(64, 3, 3, 3, requires_grad=True)
    flat = weight.detach().flatten(1)
    for mode in ("symmetric", "asymmetric"):
        scheme = Scheme(mode=mode, signed=True, per_channel=True, channel_axis=0)
        quantizer = made(scheme, (64, 1, 1, 1), low=flat.amin(1), high=flat.amax(1))
        weight.grad = None
        quantizer(weight).sum().backward()
        assert (weight.grad == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_input_is_kept(way, dtype):
    """Other floating dtypes are computed in float32 and come back as they were."""
    quantizer = made(Scheme(signed=True))
    x = torch.tensor(X, dtype=dtype, requires_grad=True)
    out = quantizer(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == dtype
    assert torch.equal(out, quantizer(x.float()).to(dtype))
    assert quantizer.scale.grad.dtype == torch.float32


def test_runs_under_autocast(way):
    """Autocast changes neither the quantizer's precision nor its result."""
    quantizer = made(Scheme(signed=True))
    x = torch.randn(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(x), quantizer.native()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_quantizer_may_change_its_dtype(dtype):
    """``model.half()`` and ``model.double()`` take the quantizers along."""
    quantizer = made(Scheme(signed=True)).to(dtype)
    quantizer(torch.ones(3, dtype=dtype, requires_grad=True)).sum().backward()
    assert quantizer.scale.grad.dtype == dtype


@pytest.mark.parametrize("size", [(), (0,), (3, 0, 2)])
def test_empty_and_dimensionless_tensors(way, size):
    """Tensors of no elements or no dimensions pass, with gradients."""
    quantizer = made(Scheme(mode="asymmetric"))
    x = torch.full(size, 0.3, requires_grad=True)
    out = quantizer(x)
    out.sum().backward()
    assert out.shape == x.grad.shape == torch.Size(size)


def test_special_values(way):
    """Infinities land on the bounds, NaN stays NaN and harms no other value."""
    quantizer = made(Scheme(signed=True))
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.5, 1e30])
    out = quantizer(x).detach()
    assert out[0] == out[4] == 1.0
    assert out[1] == quantizer(torch.tensor([-9.0])).item()
    assert out[2].isnan()
    assert out[3].item() == pytest.approx(0.5, abs=0.01)


def test_whole_numbers_pass_unchanged():
    """Indices and masks are nothing to quantize."""
    x = torch.arange(5)
    assert made(Scheme())(x) is x


def test_expanded_gradients(way):
    """A gradient without memory of its own (from ``sum``) is read rightly."""
    quantizer = made(Scheme(signed=True))
    x = torch.randn(8, 8, requires_grad=True)
    quantizer(x.t()).sum().backward()
    assert torch.equal(x.grad, ((x >= -128 / 127) & (x <= 1)).float())


def test_set_range_uses_the_whole_grid_of_small_tensors():
    """A tensor of tiny values gets a range of its own size, not a fixed floor."""
    quantizer = made(Scheme(signed=True), low=-2e-4, high=1e-4)
    assert quantizer.scale.item() == pytest.approx(2e-4)


def test_set_range_of_channels_without_values():
    """A channel of zeros takes the largest channel's range, a tensor of zeros the range 1."""
    scheme = Scheme(signed=True, per_channel=True, channel_axis=0)
    quantizer = made(scheme, (3, 1), low=torch.tensor([-0.5, 0, -0.1]), high=torch.zeros(3))
    assert quantizer.scale.flatten().tolist() == pytest.approx([0.5, 0.5, 0.1])
    assert made(Scheme(), low=0.0, high=0.0).scale.item() == 1.0
    dead = made(Scheme(mode="asymmetric"), low=0.0, high=0.0)
    assert dead(torch.ones(1)).item() == 1.0


@pytest.mark.parametrize(("low", "signed"), [(-0.1, True), (0.0, False)])
def test_sign_is_decided_by_the_data(low, signed):
    """A negative value makes the grid signed unless the scheme says otherwise."""
    assert made(Scheme(), low=low).is_signed is signed
    assert made(Scheme(signed=not signed), low=low).is_signed is not signed


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_set_range_refuses_what_is_not_finite(bad):
    """NaN or infinity in the statistics is an error of our own type; the range stays."""
    quantizer = made(Scheme())
    with pytest.raises(DataError, match="NaN or infinite"):
        quantizer.set_range(torch.tensor(-1.0), torch.tensor(bad))
    assert quantizer.scale.item() == 1.0
    with pytest.raises(DataError, match="shape"):
        quantizer.set_range(torch.zeros(3), torch.ones(3))
    with pytest.raises(DataError, match="above"):
        quantizer.set_range(torch.tensor(1.0), torch.tensor(0.0))


def test_shape_must_fit_the_scheme():
    """Several ranges need a per-channel scheme and a single channel axis."""
    with pytest.raises(ValueError, match="do not fit"):
        FakeQuantizer(Scheme(), (3, 1))
    with pytest.raises(ValueError, match="do not fit"):
        FakeQuantizer(Scheme(per_channel=True), (3, 2))


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
