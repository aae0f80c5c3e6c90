# SPDX-License-Identifier: Apache-2.0
"""Which layers are binarized, and which share of the model's operations they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nncf.compression.layout import Layout
from nncf.compression.statistics import grid
from nncf.graph.graph import Graph
from nncf.graph.multiplications import multiply_accumulates


@dataclass(frozen=True)
class BinarizedLayer:
    """One call of a layer: its multiply-accumulates (MACs) for one sample, and what has one bit.

    ``weight`` and ``activation`` are None where no binarizer stands, False while it is switched off.
    """

    name: str
    layer_type: str
    macs: float
    weight: bool | None
    activation: bool | None

    @property
    def binarized(self) -> bool:
        """Whether the layer computes with bits alone."""
        return bool(self.weight and self.activation)

    @property
    def state(self) -> str:
        if self.weight is None:
            return "N"
        if self.binarized:
            return "Y"
        if not self.weight and not self.activation:
            return "not yet"
        return "weights only" if self.weight else "activations only"


@dataclass(frozen=True)
class BinarizationStatistics:
    """Statistics of binarization; ``to_str()`` prints them as tables.

    Ratios are shares of what a binarizer stands at and is switched on; FLOPs are two for each
    MAC, for one sample.
    """

    layers: Sequence[BinarizedLayer]

    @property
    def ratio_of_enabled_weights(self) -> float:
        return _ratio([layer.weight for layer in self.layers])

    @property
    def ratio_of_enabled_activations(self) -> float:
        return _ratio([layer.activation for layer in self.layers])

    @property
    def flops(self) -> float:
        return 2 * sum(layer.macs for layer in self.layers)

    @property
    def binarized_flops(self) -> float:
        return 2 * sum(layer.macs for layer in self.layers if layer.binarized)

    @property
    def binarized_flops_share(self) -> float:
        """Share of the FLOPs that are operations on bits."""
        return self.binarized_flops / self.flops if self.flops else 0.0

    def layers_table(self) -> str:
        total = self.flops / 2
        rows = [
            [layer.name, layer.layer_type, layer.state, f"{layer.macs:.0f}",
             f"{100 * layer.macs / total if total else 0:.2f} %"]
            for layer in self.layers
        ]  # fmt: skip
        header = ["Layer name", "Layer type", "Binarized", "MAC count", "MAC share"]
        return "Binarized layers:\n" + grid(header, rows)

    def to_str(self) -> str:
        rows = [
            ["Ratio of enabled weight binarizations", f"{100 * self.ratio_of_enabled_weights:.1f} %"],
            ["Ratio of enabled activation binarizations",
             f"{100 * self.ratio_of_enabled_activations:.1f} %"],
            ["GFLOPs of one sample", f"{self.flops / 1e9:.4g}"],
            ["GFLOPs on bits", f"{self.binarized_flops / 1e9:.4g}"],
            ["Share of FLOPs on bits", f"{100 * self.binarized_flops_share:.2f} %"],
        ]  # fmt: skip
        return (
            self.layers_table()
            + "\n\nStatistics of the binarization algorithm:\n"
            + grid(["Statistic's name", "Value"], rows)
        )

    def tensorboard(self) -> dict[str, float]:
        return {
            "binarization/ratio_of_enabled_weights": self.ratio_of_enabled_weights,
            "binarization/ratio_of_enabled_activations": self.ratio_of_enabled_activations,
            "binarization/binarized_flops_share": self.binarized_flops_share,
        }


def collect(layout: Layout, graph: Graph, enabled: Mapping[str, bool]) -> BinarizationStatistics:
    """Return the statistics of a layout; ``enabled`` says by Insert name what is switched on."""
    states: dict[tuple[str, bool], bool] = {}
    for insert in layout:
        for point in insert.points:
            states[point.address, insert.op.weight] = enabled[insert.name]
    return BinarizationStatistics(
        tuple(
            BinarizedLayer(
                key,
                graph[key].layer_class or graph[key].function,
                macs,
                states.get((key, True)),
                states.get((key, False)),
            )
            for key, macs in multiply_accumulates(graph).items()
        )
    )


def _ratio(flags: Sequence[bool | None]) -> float:
    placed = [flag for flag in flags if flag is not None]
    return sum(placed) / len(placed) if placed else 0.0
