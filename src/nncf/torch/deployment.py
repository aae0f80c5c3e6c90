# SPDX-License-Identifier: Apache-2.0
"""A model on its way from PyTorch's exporter to a file: built, written, run, looked into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncf.compression.sizes import SizeTable
from nncf.onnx import size as onnx_size
from nncf.onnx.activations import leave_out_zero_points
from nncf.onnx.fake_quantize import fake_quantize_probes, use_fake_quantize
from nncf.onnx.graph import Array
from nncf.onnx.pack import pack_weights
from nncf.onnx.run import OnnxFile
from nncf.onnx.two_level import (
    mark_switches,
    store_signs,
    switch_probes,
    use_binary_convolutions,
)
from nncf.onnx.write import (
    Probe,
    clean,
    deploy,
    find_probes,
    rename,
    serialized,
    split_shared_outputs,
    with_probes,
)
from nncf.openvino import size as openvino_size
from nncf.openvino.run import OpenVINOFile
from nncf.openvino.write import write_ir


@dataclass(frozen=True)
class Deployment:
    """The deployed form of a model as the bytes of an ONNX file, and what is known of it."""

    kind: str
    data: bytes
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    probes: tuple[Probe, ...]

    @classmethod
    def build(cls, program: Any, form: Any, naming: Any) -> Deployment:
        """Bring the exporter's program into the deployed form of a ``Format``."""
        model, kind = program.model, form.kind
        split_shared_outputs(model)
        mark_switches(model.graph)
        if kind == "onnx_fakequantize":
            grids = use_fake_quantize(model)
        else:
            grids = {}
            deploy(model, for_onnx_runtime=kind == "onnx")
        if form.packs:
            pack_weights(model, raise_opset=form.opset is None)
        if kind != "onnx":
            leave_out_zero_points(model.graph)
            use_binary_convolutions(model)
        elif form.packs:
            store_signs(model)
        clean(model)
        inputs = names_or_default(naming.inputs, "input", len(model.graph.inputs))
        outputs = names_or_default(naming.outputs, "output", len(model.graph.outputs))
        rename(model, inputs, outputs)
        probes = find_probes(model) + fake_quantize_probes(model, grids)
        probes += switch_probes(model.graph)
        return cls(kind, serialized(model), inputs, outputs, probes)

    @property
    def runtime(self) -> str:
        return self._runner.runtime

    @property
    def _runner(self) -> type[OnnxFile | OpenVINOFile]:
        return OnnxFile if self.kind == "onnx" else OpenVINOFile

    @property
    def labels(self) -> dict[str, str]:
        """For each quantizer's call the name that a report shows: its point, where it has one."""
        return {probe.call: probe.label.rpartition("compression.ops.")[2] for probe in self.probes}

    def write(self, path: Path) -> Path:
        if self.kind == "openvino":
            write_ir(self.data, path)
        else:
            path.write_bytes(self.data)
        return path

    def sizes(self, path: Path) -> SizeTable:
        """Return where the bytes of the written file go."""
        table = openvino_size.size_table if self.kind == "openvino" else onnx_size.size_table
        return table(path)

    def open(self, path: Path) -> OnnxFile | OpenVINOFile:
        """Return the written file in its runtime."""
        return self._runner(path)

    def quantizer_codes(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs, and the codes of each probed quantizer by the name of its call.

        Codes are in the terms of the call: int8 where that was int8. Empty without quantizers.
        """
        if not self.probes:
            return {}
        results = self._runner(with_probes(self.data, self.probes))(inputs)
        found = {name: results[name] for name in self.output_names}
        for probe in self.probes:
            found[probe.call] = probe.codes(results[probe.tensor])
        return found


def names_or_default(names: Sequence[str] | None, kind: str, count: int) -> tuple[str, ...]:
    return tuple(names) if names is not None else tuple(f"{kind}.{i}" for i in range(count))
