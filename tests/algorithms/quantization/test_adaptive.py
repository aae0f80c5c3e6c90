# SPDX-License-Identifier: Apache-2.0
"""Bit widths as a level: which weights lose bits at a rate, what is kept, refused and restored."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import nncf
from nncf.errors import CheckpointError, ConfigError, DataError, LevelError
from nncf.torch import load_state

FIRST, MUTED, LAST = (
    f"Net/{layer}|WEIGHT"
    for layer in ("Conv2d[first]/conv2d_0", "Conv2d[muted]/conv2d_0", "Linear[last]/linear_0")
)


class Net(nn.Module):
    """Of its two middle convolutions hardly anything of one reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.loud, self.muted = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last((self.loud(x) + 1e-3 * self.muted(x)).mean((2, 3)))


def loader(count: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    return DataLoader([(image, 0) for image in images], batch_size=8)


def compressed(  # each is one way in which a configuration may differ
    *,
    device: str = "TRIAL",
    weights: Any = (8, 4, 2),
    activations: Any = None,
    data: Any = None,
    state: Any = None,
    **section: Any,
) -> tuple[Any, Net]:
    torch.manual_seed(0)
    given = {"weights": weights, "activations": activations}
    groups = {name: {"adaptive_bits": list(bits)} for name, bits in given.items() if bits}
    config = nncf.NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [2, 3, 8, 8]},
            "target_device": device,
            "compression": {
                "algorithm": "quantization",
                "first_and_last_bits": None,
                "initializer": {"range": {"num_init_samples": 16}},
                **groups,
                **section,
            },
        }
    )
    if data is not False:
        nncf.register_default_init_args(config, data or loader())
    return nncf.create_compressed_model(Net(), config, state, dump_graphs=False)


def bits(controller: Any) -> dict[str, int]:
    layout = controller.child_ctrls[0].layout
    return {insert.name: insert.op.bits for insert in layout}


def weight_bits(controller: Any) -> dict[str, int]:
    return {name: width for name, width in bits(controller).items() if name.endswith("WEIGHT")}


def answer(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(images) for images, _ in loader()])


# --- what is chosen ------------------------------------------------------------------------------


def test_the_rate_is_the_share_of_eight_bits_that_weights_save() -> None:
    """Rate 0 is 8 bits for all; any other rate is reached, and no more bits go than it takes."""
    controller, _ = compressed()
    assert controller.compression_rate == 0
    sizes = {FIRST: 432, "loud": 2304, MUTED: 2304, LAST: 80}
    for rate in (0.2, 0.5, 0.7, 0.75):
        controller.compression_rate = rate
        assert rate <= controller.compression_rate < rate + 0.25
        found = weight_bits(controller)
        kept = sum(
            size * width
            for name, width in found.items()
            for key, size in sizes.items()
            if key in name
        )
        assert controller.compression_rate == pytest.approx(1 - kept / (8 * sum(sizes.values())))
    assert set(weight_bits(controller).values()) == {2}


def test_the_weight_that_matters_least_loses_its_bits_first() -> None:
    """A convolution whose output is scaled down to nearly nothing pays for the others."""
    controller, _ = compressed()
    controller.compression_rate = 0.3
    found = weight_bits(controller)
    assert found.pop(MUTED) == 2
    assert set(found.values()) == {8}


def test_bits_come_back_with_a_lower_rate() -> None:
    """Back at rate 0 every quantizer has 8 bits and the model computes what it did at first."""
    controller, model = compressed()
    before = answer(model)
    controller.compression_rate = 0.75
    assert not torch.equal(answer(model), before)
    controller.compression_rate = 0.0
    assert set(bits(controller).values()) == {8}
    torch.testing.assert_close(answer(model), before, rtol=0, atol=1e-6)


def test_a_width_that_stays_keeps_its_trained_range() -> None:
    """Only quantizers that get other bits get a new range."""
    controller, _ = compressed()
    quantizer = controller.child_ctrls[0].all_quantizations[LAST]
    with torch.no_grad():
        quantizer.scale.fill_(0.123)
    controller.compression_rate = 0.3
    assert weight_bits(controller)[LAST] == 8
    assert float(quantizer.scale.detach().max()) == pytest.approx(0.123)


def test_activations_follow_where_the_configuration_says_so() -> None:
    """With adaptive bits of their own activations get the least width of the weights they meet."""
    controller, _ = compressed(activations=(8, 4))
    controller.compression_rate = 0.75
    assert bits(controller)["/nncf_model_input_0|OUTPUT"] == 4
    controller, _ = compressed()
    controller.compression_rate = 0.75
    assert set(bits(controller).values()) == {2, 8}


def test_only_widths_that_the_device_has_are_chosen() -> None:
    """VPU computes convolutions with 2 bits but linear layers with 4 at least."""
    controller, _ = compressed(device="VPU")
    controller.compression_rate = controller.maximal_compression_rate
    found = weight_bits(controller)
    assert found[LAST] == 4
    assert found[MUTED] == 2


def test_first_and_last_layers_keep_their_bits() -> None:
    """``first_and_last_bits`` holds for adaptive bits too, and lowers the highest rate."""
    controller, _ = compressed(first_and_last_bits=8)
    controller.compression_rate = controller.maximal_compression_rate
    found = weight_bits(controller)
    assert (found[FIRST], found[MUTED], found[LAST]) == (8, 2, 8)
    assert controller.maximal_compression_rate < 0.75


# --- state ---------------------------------------------------------------------------------------


def test_a_checkpoint_of_any_level_restores_to_the_bit() -> None:
    """A fresh model from the compression state computes the same, and its rate can be set."""
    controller, model = compressed(activations=(8, 4))
    controller.compression_rate = 0.6
    state = json.loads(json.dumps(controller.get_compression_state()))
    again, twin = compressed(activations=(8, 4), state=state)
    load_state(twin, model.state_dict(), is_resume=True)
    assert bits(again) == bits(controller)
    assert torch.equal(answer(twin), answer(model))
    assert again.compression_rate == controller.compression_rate
    again.compression_rate = 0.0
    assert set(bits(again).values()) == {8}


def test_a_running_model_goes_back_to_a_checkpoint() -> None:
    """Weights and controller state bring back widths, ranges and outputs in place."""
    controller, model = compressed(activations=(8, 4))
    controller.compression_rate = 0.6
    weights, before = copy.deepcopy(model.state_dict()), answer(model)
    state, chosen = controller.get_compression_state(), bits(controller)
    controller.compression_rate = 0.0
    load_state(model, weights, is_resume=True)
    controller.load_state(state["ctrl_state"])
    assert bits(controller) == chosen
    assert torch.equal(answer(model), before)


def test_state_of_other_quantizers_is_refused() -> None:
    """Bits of quantizers that are not there come from another configuration."""
    controller, _ = compressed()
    state = controller.get_compression_state()["ctrl_state"]
    state["quantization"]["bits"].pop(LAST)
    with pytest.raises(CheckpointError, match="of other quantizers"):
        controller.load_state(state)


def test_the_file_has_the_bits_of_the_level(tmp_path: Path) -> None:
    """The exported file is proven against the model at its level, and smaller than at rate 0."""
    controller, _ = compressed()
    controller.export_model(str(tmp_path / "eight.onnx"))
    controller.compression_rate = 0.5
    controller.export_model(str(tmp_path / "four.onnx"))
    sizes = [(tmp_path / name).stat().st_size for name in ("eight.onnx", "four.onnx")]
    assert sizes[1] < sizes[0]


def test_ranges_found_anew_fit_the_widths_of_now() -> None:
    """``init_range`` after a change of widths changes nothing: each range fits its own bits."""
    controller, model = compressed()
    controller.compression_rate = 0.75
    before = answer(model)
    controller.init_range()
    assert torch.equal(answer(model), before)


def test_statistics_count_the_widths_of_now() -> None:
    """The table of bit widths follows the rate."""
    controller, _ = compressed()
    controller.compression_rate = 0.75
    assert controller.statistics().quantization.num_wq_per_bitwidth == {2: 4}


# --- refusals ------------------------------------------------------------------------------------


def test_a_rate_out_of_reach_changes_nothing() -> None:
    """The error names the highest rate, and widths and outputs are as before."""
    controller, model = compressed(weights=(8, 4))
    before = answer(model)
    with pytest.raises(LevelError, match=r"save 0\.5 of 8 bits"):
        controller.child_ctrls[0].compression_rate = 0.6
    assert controller.compression_rate == 0
    assert torch.equal(answer(model), before)


def test_data_that_fails_halfway_changes_nothing() -> None:
    """Widths are measured on data; when that fails the model is as it was."""
    data = loader()
    controller, model = compressed(data=data)
    before = answer(model)
    data.dataset[0] = (torch.full((3, 8, 8), torch.nan), 0)
    with pytest.raises(DataError, match="NaN or infinity"):
        controller.compression_rate = 0.4
    assert set(bits(controller).values()) == {8}
    assert torch.equal(answer(model), before)


def test_without_data_the_choice_cannot_be_measured() -> None:
    """A rate between the ends needs the registered loader; the ends do not."""
    controller, _ = compressed(data=False, initializer={})
    controller.compression_rate = 0.75
    assert set(weight_bits(controller).values()) == {2}
    with pytest.raises(DataError, match="register_default_init_args"):
        controller.compression_rate = 0.4


def test_a_device_of_eight_bits_leaves_nothing_to_choose() -> None:
    """CPU computes with 8 bits only, which is said when the model is compressed."""
    with pytest.raises(ConfigError, match=r"adaptive_bits = \[2, 4, 8\] leaves nothing to choose"):
        compressed(device="CPU")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weights": {"adaptive_bits": [8, 4], "bits": 4}}, '"bits" says already'),
        ({"activations": {"adaptive_bits": [8, 4]}}, "follow the weights"),
        (
            {"weights": {"adaptive_bits": [8, 4]}, "params": {"weights_quant_start_epoch": 2}},
            "params decides about quantizers",
        ),
        (
            {
                "weights": {"adaptive_bits": [8, 4]},
                "initializer": {"precision": {"type": "manual"}},
            },
            r"initializer\.precision decides",
        ),
    ],
)
def test_options_that_contradict_each_other(section: Any, message: str) -> None:
    """Who else decides about widths excludes adaptive bits, and so do weights without them."""
    with pytest.raises(ConfigError, match=message):
        nncf.NNCFConfig.from_dict({"compression": {"algorithm": "quantization", **section}})


def test_widths_stay_without_adaptive_bits() -> None:
    """Without the option there is no rate, and setting one does nothing."""
    controller, _ = compressed(weights=None)
    controller.compression_rate = 0.5
    assert controller.compression_rate is None
    assert set(bits(controller).values()) == {8}
