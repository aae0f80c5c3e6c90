# SPDX-License-Identifier: Apache-2.0
"""A saved state speaks of layers by name, and Keras numbers layers anew in every process.

``conv2d_3`` of the run that saved may be ``conv2d_8`` of the one that loads. So a state holds the
addresses of all operations in order; where a model has as many of the same functions, its
addresses take the places of the saved ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nncf.graph.address import Address
from nncf.graph.graph import Graph

OPERATIONS = "operations"
"""Key of the list of addresses in each algorithm's builder state."""


def translated(state: Mapping[str, Any], graph: Graph) -> Mapping[str, Any]:
    """Return a compression state with the addresses of ``graph`` in place of the saved ones.

    A state of other operations comes back as it is; that it does not fit is found out later.
    """
    builder = state.get("builder_state", {})
    saved = next((part[OPERATIONS] for part in builder.values() if OPERATIONS in part), [])
    present = [operation.key for operation in graph.operations()]
    if saved == present or len(saved) != len(present):
        return state
    if [_function(key) for key in saved] != [_function(key) for key in present]:
        return state
    names = dict(zip(saved, present, strict=True))
    found: Mapping[str, Any] = _renamed(state, names)
    return found


def _function(key: str) -> str:
    return Address.parse(key).name


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        address, bar, rest = value.partition("|")
        return names.get(address, address) + bar + rest
    if isinstance(value, Mapping):
        return {_renamed(key, names): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_renamed(item, names) for item in value]
    return value
