# SPDX-License-Identifier: Apache-2.0
"""Addresses (names of operations) and points (their inputs, outputs and weights)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_OPERATION = re.compile(r"(?P<name>.+)_(?P<index>\d+)$")
_CLASS = re.compile(r"^(?P<cls>[^\[]+)(?P<rest>\[.*\])?$")

# Layer classes that earlier releases replaced by twins whose name starts with "NNCF".
_TWINS = frozenset(
    ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
    + ["Linear", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LayerNorm"]
    + ["Embedding", "EmbeddingBag"]
)


@dataclass(frozen=True, order=True)
class Address:
    """The stable name of one operation: where it runs, what it is, which call it is.

    ``str(Address(("LeNet", "Conv2d[conv1]"), "conv2d", 0))`` is
    ``LeNet/Conv2d[conv1]/conv2d_0``. Elements of ``scope`` are ``Class`` for the root and
    ``Class[attribute]`` below it; ``index`` counts the calls of that operation in that scope
    during one forward. Model inputs and outputs have an empty scope:
    ``/nncf_model_input_0``.
    """

    scope: tuple[str, ...]
    name: str
    index: int

    def __str__(self) -> str:
        return f"{'/'.join(self.scope)}/{self.name}_{self.index}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Invert ``str``. Raises ValueError when ``text`` is not an address."""
        *scope, operation = text.split("/")
        match = _OPERATION.match(operation)
        if match is None:
            raise ValueError(f"{text!r} is not an address: expected <scope>/<operation>_<index>")
        return cls(tuple(part for part in scope if part), match["name"], int(match["index"]))

    def spellings(self) -> tuple[str, ...]:
        """Return the address in every spelling that configurations may use.

        The first is ``str(self)``. Earlier releases prefixed replaced layers with ``NNCF``
        (``LeNet/NNCFConv2d[conv2]``) and wrote ``RELU`` for the operation ``relu``.
        """
        scopes = ["/".join(self.scope), "/".join(map(_twin, self.scope))]
        names = [self.name, "RELU"] if self.name in ("relu", "relu_") else [self.name]
        found = [f"{scope}/{name}_{self.index}" for name in names for scope in scopes]
        return tuple(dict.fromkeys(found))


def _twin(element: str) -> str:
    match = _CLASS.match(element)
    return f"NNCF{element}" if match and match["cls"] in _TWINS else element


PointKind = Literal["input", "output", "weight"]


@dataclass(frozen=True, order=True)
class Point:
    """One input, output or weight of an operation: where a CompressionOp can run.

    ``port`` numbers the tensors that the operation receives, in the order of its signature
    (a list argument such as the one of ``cat`` counts item by item); outputs have port 0.
    Prints as ``<address>|INPUT0``, ``<address>|OUTPUT`` or ``<address>|WEIGHT``
    (``WEIGHT2`` when it is not at the operation's usual port 1).
    """

    address: str
    kind: PointKind
    port: int = 0

    def __str__(self) -> str:
        if self.kind == "input":
            return f"{self.address}|INPUT{self.port}"
        if self.kind == "output":
            return f"{self.address}|OUTPUT" + (str(self.port) if self.port else "")
        return f"{self.address}|WEIGHT" + (str(self.port) if self.port != 1 else "")

    @classmethod
    def parse(cls, text: str) -> Point:
        """Invert ``str``. Raises ValueError when ``text`` is not a point."""
        match = re.match(r"^(?P<a>.*)\|(?P<k>INPUT|OUTPUT|WEIGHT)(?P<p>\d*)$", text)
        if match is None:
            raise ValueError(
                f"{text!r} is not a point: expected <address>|INPUT<k>, |OUTPUT, |WEIGHT"
            )
        kind: PointKind = match["k"].lower()  # type: ignore[assignment]  # the regex allows just these
        default = 1 if kind == "weight" else 0
        return cls(match["a"], kind, int(match["p"] or default))
