# SPDX-License-Identifier: Apache-2.0
"""Reads planned layouts in few words: names without the root of the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nncf.algorithms.quantization.placement import plan
from nncf.compression.layout import Layout


def place(graph: Any, device: str = "ANY", **options: Any) -> Layout:
    top = {name: options.pop(name) for name in ("ignored", "target") if name in options}
    return plan(graph, SimpleNamespace(**options), target_device=device, **top)


def names(layout: Layout) -> list[str]:
    """Names of activation quantizers, without the root."""
    return [item.name.removeprefix("Net/") for item in layout if not item.op.weight]


def weights(layout: Layout) -> list[str]:
    return [item.name.removeprefix("Net/") for item in layout if item.op.weight]


def points(layout: Layout, name: str) -> list[str]:
    (found,) = [item for item in layout if item.name.removeprefix("Net/") == name]
    return [str(point).removeprefix("Net/") for point in found.points]


def skips(layout: Layout) -> dict[str, str]:
    return {item.address.removeprefix("Net/"): item.reason for item in layout.skipped}
