# SPDX-License-Identifier: Apache-2.0
"""From ``initializer.range`` to what each quantizer wants to know of the data."""

from __future__ import annotations

from typing import Any

import pytest

from nncf.algorithms.quantization import QuantizationOptions
from nncf.algorithms.quantization.ranges import calibrations
from nncf.algorithms.quantization.scheme import Scheme
from nncf.compression.calibration import Recipe
from nncf.compression.layout import Insert
from nncf.errors import ConfigError, ScopeNotFound
from nncf.graph.address import Address, Point
from nncf.graph.graph import Graph, Operation, Parameter
from nncf.graph.kinds import KINDS
from nncf.graph.scopes import Scopes

CONV = "Net/Conv2d[conv]/conv2d_0"
RELU = "Net/ReLU[relu]/relu_0"
ACTIVATION = Scheme(bits=8)
WEIGHT = Scheme(bits=8, per_channel=True, channel_axis=0, weight=True)


def graph() -> Graph:
    """Return the graph of a convolution and a relu."""
    found = Graph()
    weight = Parameter("conv.weight", 1, (4, 3, 3, 3), channel_axis=0)
    found.add_operation(Operation(Address.parse(CONV), KINDS["convolution"], parameters=(weight,)))
    found.add_operation(Operation(Address.parse(RELU), KINDS["relu"]))
    return found


INSERTS = (
    Insert((Point(CONV, "weight", 1),), WEIGHT, (4, 1, 1, 1)),
    Insert((Point(RELU, "output"),), ACTIVATION),
)


def wishes(initializer: dict[str, Any], *, inserts: Any = INSERTS, **more: Any) -> list[Any]:
    """Return the calibrations of the two inserts, in order."""
    options = QuantizationOptions.read({"initializer": initializer, **more})
    return list(calibrations(options, inserts, Scopes(graph())).values())


def test_without_a_section_defaults_are_wished_for_but_not_required() -> None:
    """No range section: 256 samples of mixed_min_max, and missing data is no error."""
    weight, activation = wishes({})
    assert (activation.samples, activation.required, activation.weight) == (256, False, False)
    assert activation.recipe == Recipe("extremes", "sample", False, True, absolute_high=True)
    assert (weight.weight, weight.channel_axis, weight.rank) == (True, 0, 4)


def test_a_section_makes_data_required() -> None:
    """A range section of one object holds for all quantizers and requires data."""
    found = wishes({"range": {"num_init_samples": 9, "type": "min_max"}})
    assert [(wish.samples, wish.required) for wish in found] == [(9, True), (9, True)]


@pytest.mark.parametrize(
    ("kind", "symmetric", "asymmetric", "weight"),
    [
        ("min_max", "batch low high |x|", "batch low high", "batch low high |x|"),
        ("mixed_min_max", "sample low mean |x|", "sample mean mean", "batch low high |x|"),
        ("mean_min_max", "batch mean mean |x|", "batch mean mean", "batch mean mean |x|"),
        ("threesigma", "all low high", "all low high", "all low high"),
        ("percentile", "all low high", "all low high", "all low high"),
        ("mean_percentile", "batch mean mean", "batch mean mean", "batch mean mean"),
    ],
)
def test_each_type_has_its_recipe(kind: str, symmetric: str, asymmetric: str, weight: str) -> None:
    """Every type reduces and aggregates as its row in the table says."""
    inserts = [
        Insert((Point(RELU, "output"),), Scheme()),
        Insert((Point(RELU, "output"),), Scheme(mode="asymmetric"), label="b|OUTPUT"),
        INSERTS[0],
    ]
    section = {"range": {"type": kind, "params": {"min_percentile": 1, "max_percentile": 98}}}
    found = [wish.recipe for wish in wishes(section, inserts=inserts)]
    texts = []
    for recipe in found:
        ends = ["mean" if recipe.average_low else "low", "mean" if recipe.average_high else "high"]
        texts.append(" ".join([recipe.per, *ends] + ["|x|"] * recipe.absolute_high))
    assert texts == [symmetric, asymmetric, weight]
    if "percentile" in kind:
        assert found[0].percentiles == (1, 98)
        assert found[0].ends == "percentiles"


def test_per_channel_activations_of_the_mixed_type_take_extremes() -> None:
    """mixed_min_max averages per-tensor activations alone."""
    scheme = Scheme(per_channel=True, channel_axis=1)
    insert = Insert((Point(RELU, "output"),), scheme, (1, 4, 1, 1))
    (wish,) = wishes({}, inserts=[insert])
    assert wish.recipe == Recipe("extremes", "batch", absolute_high=True)
    assert (wish.channel_axis, wish.rank) == (1, 4)


def test_entries_of_a_list_are_for_groups_and_scopes() -> None:
    """Each quantizer obeys the one entry whose group and scopes fit it."""
    weight, activation = wishes(
        {
            "range": [
                {
                    "target_scopes": "{re}conv",
                    "target_quantizer_group": "weights",
                    "type": "min_max",
                },
                {"ignored_scopes": [CONV], "num_init_samples": 5, "type": "percentile"},
            ]
        }
    )
    assert (weight.recipe.ends, weight.samples) == ("extremes", 256)
    assert (activation.recipe.ends, activation.samples) == ("percentiles", 5)


def test_a_quantizer_without_an_entry_is_an_error() -> None:
    """A list that leaves a quantizer out names it and its group."""
    with pytest.raises(
        ConfigError, match=r"Location Net/ReLU\[relu\]/relu_0\|OUTPUT does not match"
    ):
        wishes({"range": [{"target_scopes": [CONV]}]})


def test_a_quantizer_with_two_entries_is_an_error() -> None:
    """A list of which two entries fit a quantizer names both."""
    entries = [{"ignored_scopes": []}, {"target_scopes": [RELU]}]
    with pytest.raises(ConfigError, match=r"matches more than one.*entries 0, 1"):
        wishes({"range": entries})


def test_an_entry_for_no_operation_is_an_error() -> None:
    """A scope of an entry that matches nothing is reported with its place in the list."""
    entries = [{"ignored_scopes": ["Net/Conv2d[cone]"]}]
    with pytest.raises(ScopeNotFound, match=r"range\[0\]\.ignored_scopes\[0\]"):
        wishes({"range": entries})
    assert len(wishes({"range": entries}, validate_scopes=False)) == 2


def test_an_override_of_one_operation_wins() -> None:
    """The range of a scope override holds for that operation, and requires data."""
    override = {"initializer": {"range": {"num_init_samples": 3, "type": "threesigma"}}}
    weight, activation = wishes({}, scope_overrides={"activations": {"{re}relu": override}})
    assert (weight.samples, weight.required) == (256, False)
    assert (activation.samples, activation.required) == (3, True)
    assert activation.recipe.ends == "three_sigma"


def test_an_insert_with_several_points_obeys_the_entry_of_any_of_them() -> None:
    """A unified quantizer is meant when one of its operations is."""
    insert = Insert((Point(CONV, "input"), Point(RELU, "output")), Scheme())
    entries = [{"target_scopes": [RELU], "num_init_samples": 7}]
    (wish,) = wishes({"range": entries}, inserts=[insert])
    assert wish.samples == 7
