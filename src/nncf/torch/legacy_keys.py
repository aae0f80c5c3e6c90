# SPDX-License-Identifier: Apache-2.0
"""Keys under which releases 1.x to 2.6 of the original saved CompressionOps, and where they belong.

``conv1.pre_ops.0.op.scale`` is a quantizer of the weight of layer ``conv1``,
``conv1.pre_ops.0.op._binary_mask`` its mask, ``conv1.pre_ops.0.op._mask`` the logits of an RB mask,
``external_quantizers.LeNet/NNCFConv2d[conv1]/conv2d_0|OUTPUT.scale`` (first
``activation_quantizers.LeNet/….scale``) one of an activation, ``A;B`` one for several points.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cached_property

import torch

from nncf.graph.address import Address, Point
from nncf.torch.intercept import Compression

_LOGGER = logging.getLogger("nncf")

_WEIGHT = re.compile(r"^(?:(?P<layer>.*)\.)?(?P<side>pre|post)_ops\.\d+\.op\.(?P<parameter>\w+)$")
_ACTIVATION = re.compile(
    r"^(?:external_quantizers|activation_quantizers)\.(?P<places>.+)\.(?P<parameter>\w+)$"
)
_PARAMETERS = {
    "signed_tensor": "signed",
    "_binary_mask": "mask",
    "binary_mask": "mask",
    "_mask": "logits",  # of RB sparsity
}
_OPTIONAL = frozenset(["_num_bits", "enabled", "nncf_padding_value", "uniform"])


class LegacyKeys:
    """Translates old keys to those of the CompressionOps that stand at the same places.

    ``compressions`` are the compression submodules of a model, by path.
    """

    def __init__(self, compressions: Mapping[str, Compression]) -> None:
        self._compressions = compressions
        self._translated: dict[str, str] = {}

    @cached_property
    def _ops(self) -> dict[str, list[tuple[str, torch.nn.Module]]]:
        """State-dict prefixes and ops by place: a normal address with its side, or a layer."""
        found: dict[str, list[tuple[str, torch.nn.Module]]] = {}
        for path, compression in self._compressions.items():
            for insert in compression.layout:
                op = f"{path}.ops.{insert.name}", compression.ops[insert.name]
                for point in (*insert.points, *_named(insert.name)):
                    for place in _places(point):
                        if op not in found.setdefault(place, []):
                            found[place].append(op)
        return found

    def is_optional(self, key: str) -> bool:
        """Tell whether an old key holds nothing that is loaded."""
        return key.rpartition(".")[2] in _OPTIONAL and bool(
            _WEIGHT.match(key) or _ACTIVATION.match(key) or key.endswith("nncf_padding_value")
        )

    def is_newer(self, key: str) -> bool:
        """Tell whether ours is a key that a translated checkpoint cannot have: a random stream's."""
        op, _, parameter = key.rpartition(".")
        return parameter == "key" and f"{op}.logits" in self._translated.values()

    def disagreements(self, key: str, bare: str, value: object) -> list[str]:
        """Return a complaint when a saved quantizer has another number of bits than ours."""
        if not bare.endswith("._num_bits") or not isinstance(value, torch.Tensor):
            return []
        saved = int(value.flatten()[0])
        bits = {getattr(op, "scheme", None) and op.scheme.bits for _, op in self._find(bare)}
        return [f"{key}: {saved} bits in place of {b}" for b in bits if b not in (None, saved)]

    def translate(self, key: str) -> list[str]:
        """Return our keys for an old key; empty when it is no old key or nothing stands there."""
        parameter = key.rpartition(".")[2]
        parameter = _PARAMETERS.get(parameter, parameter)
        found = [f"{prefix}.{parameter}" for prefix, op in self._find(key)
                 if parameter in op.state_dict()]  # fmt: skip
        if found:
            self._translated[key] = found[0]
        return found

    def _find(self, key: str) -> list[tuple[str, torch.nn.Module]]:
        if match := _WEIGHT.match(key):
            places = [f"{match['layer'] or ''}:{match['side']}"]
        elif match := _ACTIVATION.match(key):
            places = [_normal(place) for place in match["places"].split(";")]
        else:
            return []
        return [op for place in dict.fromkeys(places) for op in self._ops.get(place, [])]

    def warn(self) -> None:
        """Tell which keys were translated, once for a checkpoint."""
        if self._translated:
            old, new = next(iter(self._translated.items()))
            _LOGGER.warning(
                "%d keys of the checkpoint have names of an earlier release; '%s' is now '%s'. "
                "Such checkpoints are deprecated: save the model's state_dict() anew, with "
                "get_compression_state() beside it.",
                len(self._translated),
                old,
                new,
            )


def _named(name: str) -> tuple[Point, ...]:
    """Return the point after which an op is named, where it differs from those it runs at."""
    try:
        return (Point.parse(name),)
    except ValueError:
        return ()


def _places(point: Point) -> list[str]:
    """Return the places, in the words of old keys, that a point of ours stands for."""
    address = Address.parse(point.address)
    elements = [element.rpartition("[")[2].rstrip("]") for element in address.scope[1:]]
    layer = ".".join(elements)
    normal = _normal(point.address)
    if point.kind == "weight":
        return [f"{layer}:pre"]
    if point.kind == "input":
        return [f"{normal}|INPUT{point.port}"]
    return [normal, f"{normal}|OUTPUT", f"{layer}:post"]


def _normal(place: str) -> str:
    """Return an address, maybe with a side, in one spelling for all releases."""
    address, bar, side = place.partition("|")
    scope, slash, operation = address.rpartition("/")
    elements = [re.sub(r"^NNCF(?:User)?(?=[A-Z])", "", element) for element in scope.split("/")]
    operation = re.sub(r"^(?:RELU|relu_)(?=_\d+$)", "relu", operation)
    return "/".join(elements) + slash + operation + bar + side
