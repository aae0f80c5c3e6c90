# SPDX-License-Identifier: Apache-2.0
"""Ranges from data, and batch norms that follow the compressed model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.torch import FakeQuantizer
from nncf.compression.calibration import Calibration, Recipe
from nncf.errors import DataError
from nncf.torch.initialize import adapt_batch_norm, initialize_ranges

ASYMMETRIC = Calibration(Recipe("extremes", "sample", True, True), samples=12)
SYMMETRIC = Calibration(Recipe("extremes", "sample", False, True, absolute_high=True), samples=12)
PER_CHANNEL = Calibration(Recipe(), samples=12, channel_axis=0, rank=2, weight=True)
DATA = numpy.random.default_rng(1).normal(0.5, 1, (3, 4, 5)).astype(numpy.float32)
BATCHES = [(torch.tensor(batch), torch.zeros(4)) for batch in DATA]


class Tiny(nn.Module):
    """One linear layer with all its quantizers, and one that no value reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.input = FakeQuantizer(Scheme(mode="asymmetric"))
        self.weight = FakeQuantizer(
            Scheme(per_channel=True, channel_axis=0, weight=True, narrow_range=True), (3, 1)
        )
        self.output = FakeQuantizer(Scheme())
        self.branch = FakeQuantizer(Scheme())

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(self.input(x), self.weight(self.linear.weight), self.linear.bias)
        x = self.output(torch.relu(x))
        return self.norm(self.dropout(x))


WISHES = {"input": ASYMMETRIC, "weight": PER_CHANNEL, "output": SYMMETRIC}


def quantizers(model: Tiny) -> dict[str, FakeQuantizer]:
    """Return the quantizers by name."""
    return {name: getattr(model, name) for name in (*WISHES, "branch")}


def outputs(model: Tiny) -> numpy.ndarray:
    """Return what the output quantizer sees of all data, computed apart."""
    weight, bias = (p.detach().double().numpy() for p in model.linear.parameters())
    return numpy.maximum(DATA @ weight.T + bias, 0)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all values and flags of a model."""
    values: dict[str, Any] = {key: value.clone() for key, value in model.state_dict().items()}
    for name, module in model.named_modules():
        values[f"{name} flags"] = module.training
        if isinstance(module, FakeQuantizer):
            values[f"{name} flags"] = (module.initialized, module.enabled, module.observer)
    return values


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Tell whether two snapshots are equal to the last bit."""
    return left.keys() == right.keys() and all(
        torch.equal(value, right[key]) if isinstance(value, Tensor) else value == right[key]
        for key, value in left.items()
    )


def test_ranges_are_those_of_the_data() -> None:
    """Each quantizer gets the range that NumPy computes from what reaches it in float."""
    model = Tiny().train()
    expected = outputs(model).max((2,)).mean()
    unseen = initialize_ranges(model, quantizers(model), WISHES, BATCHES)
    assert unseen == ()
    low, high = DATA.min(2).mean(), DATA.max(2).mean()
    torch.testing.assert_close(model.input.input_low.item(), float(low))
    torch.testing.assert_close(model.input.input_range.item(), float(high - low))
    torch.testing.assert_close(model.output.scale.item(), float(expected))
    assert not model.output.signed
    weight = model.linear.weight.detach()
    assert torch.equal(model.weight.scale[:, 0], weight.abs().amax(1))
    assert model.training
    assert model.norm.num_batches_tracked == 0
    assert all(model.get_submodule(name).observer is None for name in quantizers(model))
    assert not torch.equal(model.eval()(BATCHES[0][0]), _in_float(model, BATCHES[0][0]))


def _in_float(model: Tiny, x: Tensor) -> Tensor:
    return model.norm(torch.relu(model.linear(x)))


def test_a_quantizer_that_no_value_reaches_is_switched_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A wish that no value fulfils is logged, and the values there would stay in float."""
    model = Tiny()
    with caplog.at_level(logging.ERROR, "nncf"):
        unseen = initialize_ranges(
            model, quantizers(model), {**WISHES, "branch": SYMMETRIC}, BATCHES
        )
    assert unseen == ("branch",)
    assert not model.branch.enabled
    assert not model.branch.initialized
    assert model.output.enabled
    assert "branch" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_data_is_an_error_and_leaves_no_trace(value: float) -> None:
    """NaN or infinity in the data names batch and point; model and quantizers are as before."""
    model = Tiny()
    before = snapshot(model)
    broken = [(BATCHES[0][0], 0), (BATCHES[1][0].clone(), 0)]
    broken[1][0][2, 3] = value
    with pytest.raises(DataError, match=r"Batch 1 of the calibration data .* it reached input"):
        initialize_ranges(model, quantizers(model), WISHES, broken)
    assert same(before, snapshot(model))


def test_a_model_that_makes_nan_of_good_data_is_told_from_bad_data() -> None:
    """When the model itself computes NaN, the message says so and names the first point."""
    model = Tiny()
    model.linear.bias.data[1] = float("nan")
    with pytest.raises(DataError, match=r"which is finite, the model computes NaN .* at output"):
        initialize_ranges(model, quantizers(model), WISHES, BATCHES)


def test_a_range_that_cannot_be_set_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last quantizer refuses its range, those before it are put back."""
    model = Tiny()
    before = snapshot(model)

    def refuse(minimum: Tensor, maximum: Tensor) -> None:
        raise DataError("no such range")

    monkeypatch.setattr(model.output, "set_range", refuse)
    with pytest.raises(DataError, match=r"output: its range cannot be set. no such range"):
        initialize_ranges(model, quantizers(model), WISHES, BATCHES)
    assert same(before, snapshot(model))


def test_data_that_does_not_fit_the_model_is_shown() -> None:
    """A forward that fails becomes our error, with the batch, and leaves no trace."""
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(DataError, match=r"(?s)batch 0 .*RuntimeError.*Tensor float32 \(4, 7\)"):
        initialize_ranges(model, quantizers(model), WISHES, [(torch.zeros(4, 7), 0)])
    assert same(before, snapshot(model))


def test_no_samples_means_no_initialisation() -> None:
    """With 0 samples the model is not run and nothing changes."""
    model = Tiny()
    before = snapshot(model)
    none = {name: Calibration(samples=0) for name in WISHES}
    assert initialize_ranges(model, quantizers(model), none, [None]) == ()
    assert same(before, snapshot(model))


PARAMETERS = {"weight": ("linear.weight",)}


def test_without_a_loader_weights_are_initialised_from_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No loader: weights get their ranges, activations keep theirs, with a warning."""
    model = Tiny()
    with caplog.at_level(logging.WARNING, "nncf"):
        unseen = initialize_ranges(model, quantizers(model), WISHES, None, parameters=PARAMETERS)
    assert unseen == ()
    assert torch.equal(model.weight.scale[:, 0], model.linear.weight.detach().abs().amax(1))
    assert model.weight.initialized
    assert not model.input.initialized
    assert model.input.enabled
    assert "2 activation quantizers" in caplog.text
    assert "register_default_init_args" in caplog.text


def test_a_required_wish_without_a_loader_is_an_error() -> None:
    """Ranges asked for in the configuration need a loader; the message says how to register."""
    model = Tiny()
    before = snapshot(model)
    wishes = {**WISHES, "output": Calibration(required=True)}
    with pytest.raises(DataError, match=r"first is output.*register_default_init_args") as caught:
        initialize_ranges(model, quantizers(model), wishes, None, parameters=PARAMETERS)
    assert isinstance(caught.value, ValueError)
    assert same(before, snapshot(model))


def test_weights_alone_need_no_run_of_the_model() -> None:
    """When only weights wish for ranges and stand in the model, the loader is not touched."""
    model = Tiny()
    initialize_ranges(
        model, quantizers(model), {"weight": PER_CHANNEL}, [None], parameters=PARAMETERS
    )
    assert model.weight.initialized


def test_a_bad_weight_is_named() -> None:
    """NaN in a weight is an error that names the parameter."""
    model = Tiny()
    model.linear.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"linear\.weight at weight holds NaN"):
        initialize_ranges(model, quantizers(model), {"weight": PER_CHANNEL}, parameters=PARAMETERS)


def test_only_as_many_samples_as_a_wish_says_count() -> None:
    """Two wishes with different numbers of samples each see their own."""
    model = Tiny()
    wishes = {
        "input": Calibration(Recipe("extremes", "batch"), samples=4),
        "output": Calibration(Recipe("extremes", "batch"), samples=12),
    }
    expected = outputs(model)
    initialize_ranges(model, quantizers(model), wishes, BATCHES)
    span = max(DATA[0].max(), 0) - min(DATA[0].min(), 0)
    torch.testing.assert_close(model.input.input_range.item(), float(span))
    torch.testing.assert_close(model.output.scale.item(), float(expected.max()))


def test_the_random_stream_of_training_is_undisturbed() -> None:
    """What is drawn after initialisation is what would have been drawn without."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model = Tiny.__new__(Tiny)
    state = torch.get_rng_state()
    model.__init__()
    torch.set_rng_state(state)
    loader = torch.utils.data.DataLoader(list(torch.tensor(DATA[0])), 2, shuffle=True)
    initialize_ranges(model, quantizers(model), WISHES, loader)
    adapt_batch_norm(model, loader, 4)
    assert torch.equal(torch.rand(2), expected)


# ----------------------------------------------------------------------------- batch norms


class Normed(nn.Module):
    """A batch norm between things that differ in training."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5, momentum=momentum)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.runs += 1
        assert not self.training
        return self.norm(self.dropout(x))


def test_batch_norms_follow_the_data_with_their_momentum() -> None:
    """Running statistics are those of the formula over ceil(samples / batch size) batches."""
    model = Normed().train()
    mean, variance = numpy.zeros(5), numpy.ones(5)
    for batch in DATA[:2].astype(float):
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        variance = 0.9 * variance + 0.1 * batch.var(0, ddof=1)
    adapt_batch_norm(model, BATCHES, 5)
    numpy.testing.assert_allclose(model.norm.running_mean, mean, rtol=1e-5)
    numpy.testing.assert_allclose(model.norm.running_var, variance, rtol=1e-5)
    assert model.runs == 2
    assert model.norm.training
    assert model.calls == 0


def test_a_model_without_batch_norms_is_not_run() -> None:
    """Without a running statistic, or with 0 samples, the loader is not touched."""
    taken: list[int] = []
    loader = (taken.append(index) for index in range(9))
    adapt_batch_norm(nn.Sequential(nn.Linear(5, 1), nn.LayerNorm(1)), loader, 10)
    adapt_batch_norm(nn.BatchNorm1d(5, track_running_stats=False), loader, 10)
    adapt_batch_norm(Normed(), loader, 0)
    assert taken == []


@pytest.mark.parametrize("value", [float("nan"), "wrong shape"])
def test_a_failed_adaptation_leaves_no_trace(value: Any) -> None:
    """NaN names the layer; whatever fails, the statistics are as before."""
    model = Normed().train()
    before = snapshot(model)
    bad = torch.full((4, 5), value) if isinstance(value, float) else torch.zeros(4, 6)
    with pytest.raises(DataError, match=r'Batch 1 .*"norm"|failed on batch 1'):
        adapt_batch_norm(model, [BATCHES[0], (bad, 0)], 100)
    assert same(before, snapshot(model))


def test_a_last_batch_of_one_sample_is_left_out() -> None:
    """One value per channel has no variance: left out at the end, an error at the start."""
    model = Normed()
    adapt_batch_norm(model, [BATCHES[0], (torch.zeros(1, 5), 0)], 100)
    numpy.testing.assert_allclose(model.norm.running_mean, 0.1 * DATA[0].mean(0), rtol=1e-5)
    with pytest.raises(DataError, match="at least two samples"):
        adapt_batch_norm(Normed(), [(torch.zeros(1, 5), 0)], 100)


def test_a_generator_is_used_as_far_as_it_goes() -> None:
    """A one-shot iterator serves once; asked again it is an error, not silence."""

    def batches() -> Iterator[Any]:
        yield from BATCHES

    source = batches()
    model = Normed()
    adapt_batch_norm(model, source, 100)
    assert model.runs == 3
    with pytest.raises(DataError, match="yielded nothing"):
        adapt_batch_norm(copy.deepcopy(model), source, 100)
