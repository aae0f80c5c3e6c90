# SPDX-License-Identifier: Apache-2.0
"""What a device can compute with integers, read from ``hardware/*.json``.

Each file names ``schemes`` (lists of bits, modes and granularities; all their combinations, in
that order of preference) and ``operations`` under their OpenVINO names. An operation lists the
schemes of its activations and its weights; with none it lets quantized values pass
(``MaxPool``). ``unified`` asks for one range on all inputs, ``passes_when`` names attribute
values with which it only moves data.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncf.algorithms.quantization.scheme import Scheme
from nncf.graph.graph import Operation

Schemes = tuple[Scheme, ...]

_FOLDER = Path(__file__).parent / "hardware"
_FILES = {"ANY": "cpu", "CPU": "cpu", "CPU_SPR": "cpu", "GPU": "gpu", "VPU": "vpu"}


@dataclass(frozen=True)
class Entry:
    """What a device offers for one operation; None where it states nothing."""

    activations: Schemes | None = None
    weights: Schemes | None = None
    unified: bool = False
    passes_when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def passes(self, attributes: Mapping[str, Any]) -> bool:
        """Tell whether the operation with these attributes only moves data."""
        return any(attributes.get(name) in values for name, values in self.passes_when)


@dataclass(frozen=True)
class Hardware:
    """A target device and its entries; ``entries`` None means that nothing is restricted."""

    device: str
    entries: Mapping[str, Entry] | None

    def find(self, operation: Operation) -> Entry | None:
        """Return the entry of an operation, None where the device has none."""
        if self.entries is None:
            return None
        for name in operation.kind.hardware:
            if name in self.entries:
                return self.entries[name]
        return None

    @property
    def saturates(self) -> bool:
        """Whether 8-bit products may overflow: processors without VNNI add them in 16 bits."""
        return self.device in ("ANY", "CPU")


@functools.cache
def load(device: str) -> Hardware:
    """Return the description of a target device (``ANY CPU CPU_SPR GPU VPU TRIAL``)."""
    if device not in _FILES:
        return Hardware(device, None)
    data = json.loads((_FOLDER / f"{_FILES[device]}.json").read_text(encoding="utf-8"))
    schemes = {name: _combinations(item) for name, item in data["schemes"].items()}
    entries = {
        name: _entry(item, schemes, any_device=device == "ANY")
        for name, item in data["operations"].items()
    }
    return Hardware(device, entries)


def _entry(item: Mapping[str, Any], schemes: Mapping[str, Schemes], *, any_device: bool) -> Entry:
    activations, weights = (
        _joined(schemes[name] for name in item[group]) if group in item else None
        for group in ("activations", "weights")
    )
    if any_device and activations:
        # A model for any device must be fast in ONNX Runtime too, whose QuantizeLinear with
        # one scale per channel of an activation is slow: prefer one per tensor.
        activations = tuple(sorted(activations, key=lambda scheme: scheme.per_channel))
    passes_when = tuple((name, tuple(v)) for name, v in item.get("passes_when", {}).items())
    return Entry(activations, weights, bool(item.get("unified", False)), passes_when)


def _joined(parts: Any) -> Schemes:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(parts)))


def _combinations(item: Mapping[str, Any]) -> Schemes:
    return tuple(
        Scheme(bits=bits, mode=mode, per_channel=per_channel, signed=item.get("signed"))
        for bits, mode, per_channel in itertools.product(
            item["bits"], item["mode"], item["per_channel"]
        )
    )
