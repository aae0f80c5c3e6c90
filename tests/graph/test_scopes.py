# SPDX-License-Identifier: Apache-2.0
"""Scopes name operations as documented, in both eras of the configuration format."""

from __future__ import annotations

import logging

import pytest

from nncf.errors import ScopeNotFound
from nncf.graph.address import Address
from nncf.graph.graph import Graph, Operation
from nncf.graph.kinds import KINDS
from nncf.graph.scopes import Scopes

ADDRESSES = (
    "/nncf_model_input_0",
    "LeNet/Conv2d[conv1]/conv2d_0",
    "LeNet/relu_0",
    "LeNet/Conv2d[conv2]/conv2d_0",
    "LeNet/Sequential[body]/Block[0]/Conv2d[conv1]/conv2d_0",
    "LeNet/Sequential[body]/Block[0]/relu_0",
    "LeNet/Sequential[body]/Block[1]/Conv2d[conv1]/conv2d_0",
)


@pytest.fixture
def scopes() -> Scopes:
    kind = KINDS["unknown"]
    return Scopes(Graph(Operation(Address.parse(text), kind) for text in ADDRESSES))


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("LeNet/Conv2d[conv2]/conv2d_0", [3]),
        ("LeNet/NNCFConv2d[conv2]/conv2d_0", [3]),
        ("LeNet/NNCFConv2d[conv2]", [3]),
        ("LeNet/Sequential[body]", [4, 5, 6]),
        ("LeNet/Sequential[body]/Block[0]", [4, 5]),
        ("Block/NNCFConv2d[conv1]", [4, 6]),
        ("Sequential/Block[1]", [6]),
        ("LeNet/RELU_0", [2]),
        ("/nncf_model_input_0", [0]),
        ("LeNet", [1, 2, 3, 4, 5, 6]),
        ("{re}.*RELU.*", [2, 5]),
        ("{re}NNCFConv2d\\[conv1\\]", [1, 4, 6]),
        ("{re}Block\\[\\d\\]/relu", [5]),
        ("LeNet{re}/Conv2d.conv2", [3]),
        ("Block[0]", []),
        ("LeNet/Conv2d[conv", []),
        ("Conv2d[conv1]/conv2d", []),
    ],
)
def test_find(scopes: Scopes, scope: str, expected: list[int]) -> None:
    """A scope matches the operations that its form describes, and no others."""
    assert list(scopes.find(scope)) == [ADDRESSES[place] for place in expected]


def test_match_keeps_first_scope(scopes: Scopes) -> None:
    """Of several scopes that match an operation the first is reported."""
    found = scopes.match(["{re}conv2$|conv2d", "LeNet/Conv2d[conv2]"])
    assert found["LeNet/Conv2d[conv2]/conv2d_0"] == "{re}conv2$|conv2d"


def test_no_match_names_nearest(scopes: Scopes) -> None:
    """A scope that matches nothing is an error with its path, itself and near addresses."""
    with pytest.raises(ScopeNotFound) as caught:
        scopes.match(["LeNet/relu_0", "LeNet/Conv2d[conv9]"], where="compression[0].ignored_scopes")
    message = str(caught.value)
    assert 'compression[0].ignored_scopes[1] "LeNet/Conv2d[conv9]" matches no operation' in message
    assert '"LeNet/Conv2d[conv2]/conv2d_0"' in message


def test_no_match_without_validation(scopes: Scopes, caplog: pytest.LogCaptureFixture) -> None:
    """Without validation an unmatched scope is only logged."""
    with caplog.at_level(logging.INFO, logger="nncf"):
        assert scopes.match(["LeNet/nothing"], validate=False) == {}
    assert "LeNet/nothing" in caplog.text
