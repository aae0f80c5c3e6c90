# SPDX-License-Identifier: Apache-2.0
"""The PyTorch quantizer: its mathematics, its bits, its state, and what may be done with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nncf.algorithms.quantization import formula
from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.torch import FakeQuantizer
from nncf.errors import DataError
from nncf.torch import kernels
from tests.quantizers import SCHEMES, X, made


@pytest.fixture(params=["eager", "native"])
def way(request):
    """Each way to compute on the processor; skips where there is no compiler."""
    kernels.use(request.param)
    if kernels.way_for(torch.ones(1)) != request.param:
        pytest.skip("no C compiler on this machine")
    yield request.param
    kernels.use(None)


def reference_grid(quantizer):
    """The float64 grid of formula.py for the quantizer's parameters."""
    with torch.no_grad():
        span = quantizer._span_parameter
        span = (span.exp() if quantizer.scheme.logarithm_scale else span).double().numpy()
    if quantizer.scheme.mode == "symmetric":
        return formula.symmetric_grid(quantizer.scheme, span, signed=quantizer.is_signed)
    low = quantizer.input_low.detach().double().numpy()
    return formula.asymmetric_grid(quantizer.scheme, low, span)


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
