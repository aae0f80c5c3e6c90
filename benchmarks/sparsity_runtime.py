# SPDX-License-Identifier: Apache-2.0
"""What zeros and removed channels are worth in runtimes: latency and size of files.

    python -m benchmarks.sparsity_runtime [--networks resnet50 encoder] [--seconds 30]
        [--threads 2] [--processor-time] [--output FILE.json]

A convolutional network (ResNet-50, 224×224) and a transformer encoder (two layers as BERT-base
has them, 128 tokens), random weights, batch 1. The smallest weights of each layer become zero in
the exported files: 50 to 95 % anywhere, or two of each four neighbours along the inputs (2:4).
Beside them stands a network with half of the channels inside each block really removed.

FP32 and INT8 files (ours, default settings) run in OpenVINO and ONNX Runtime; INT8 also with
OpenVINO's CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE, FP32 also with ONNX sparse initializers. Files of
one runtime and precision are timed in turn, one call each in an order that changes from turn to
turn. How many layers run in a kernel for sparse weights is read from the runtime's own graph.
``--processor-time`` counts the processor's time of the process instead, for a machine that
others use as well; with it, use one thread.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import networks
from benchmarks.records import machine, markdown, measure_each
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.errors import ExportError
from nncf.onnx.run import OnnxFile
from nncf.openvino.run import OpenVINOFile
from nncf.torch import save_packed
from nncf.torch.export import export

Array = NDArray[Any]
DENSE, REMOVED, TWO_OF_FOUR = "dense", "half the channels removed", "2:4"
LEVELS = {f"{level} % zeros": level / 100 for level in (50, 70, 80, 90, 95)}
PATTERNS = (DENSE, *LEVELS, TWO_OF_FOUR, REMOVED)
RATE = 0.5  # from which share of zeros OpenVINO may pack a layer's weights
IMAGES = 4  # for calibration


class EncoderLayer(nn.Module):
    """A transformer layer (arXiv:1706.03762) whose inner sizes may be halved."""

    def __init__(self, width: int = 768, heads: int = 12, hidden: int = 3072) -> None:
        super().__init__()
        self.heads, inner = heads, heads * 64
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.output = nn.Linear(inner, width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        query, key, value = (
            part(x).reshape(batch, tokens, self.heads, 64).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = torch.softmax(query @ key.transpose(2, 3) / 8.0, dim=-1)
        mixed = (scores @ value).transpose(1, 2).reshape(batch, tokens, self.heads * 64)
        x = self.norm1(x + self.output(mixed))
        return self.norm2(x + self.narrow(F.gelu(self.widen(x))))


def encoder(*, removed: bool) -> nn.Module:
    """Return two layers of the size of BERT-base's, or with half the heads and hidden channels."""
    sizes = {"heads": 6, "hidden": 1536} if removed else {}
    return nn.Sequential(EncoderLayer(**sizes), EncoderLayer(**sizes))


def resnet50(*, removed: bool) -> nn.Module:
    """Return ResNet-50, or with half the channels between the convolutions of each block."""
    network = networks.resnet50()
    for block in network.modules():
        if removed and isinstance(block, networks.Bottleneck):
            inputs, width = block.conv1.in_channels, block.conv1.out_channels // 2
            stride = block.conv2.stride[0]
            block.conv1, block.bn1 = networks.conv_norm(inputs, width, kernel=1)
            block.conv2, block.bn2 = networks.conv_norm(width, width, stride=stride)
            block.conv3, block.bn3 = networks.conv_norm(width, block.conv3.out_channels, kernel=1)
    return network


NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "resnet50": (resnet50, (3, 224, 224)),
    "encoder": (encoder, (128, 768)),
}


# --- zeros ---------------------------------------------------------------------------------


def with_zeros(weight: Array, pattern: str, axis: int = 1) -> Array:
    """Return the weight with zeros in a pattern; inputs lie along ``axis``."""
    if pattern in LEVELS:
        found = weight.copy().reshape(-1)
        count = int(LEVELS[pattern] * found.size)
        found[np.argpartition(np.abs(found.astype(np.float32)), count)[:count]] = 0
        return found.reshape(weight.shape)
    if pattern != TWO_OF_FOUR or weight.shape[axis] % 4:
        return weight
    moved = np.moveaxis(weight, axis, -1)
    groups = moved.reshape(-1, 4).copy()
    smallest = np.argsort(np.abs(groups.astype(np.float32)), axis=1)[:, :2]
    np.put_along_axis(groups, smallest, 0, axis=1)
    return np.moveaxis(groups.reshape(moved.shape), -1, axis)


def weights_of(graph: onnx.GraphProto) -> Iterator[tuple[onnx.TensorProto, int]]:
    """Yield the weights of convolutions and matrix products, and the axis of their inputs."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def axis(name: str, moved: bool) -> int | None:
        for node in readers.get(name, ()):
            if node.op_type in ("Conv", "Gemm"):
                return 1 - int(moved)
            if node.op_type == "MatMul":
                return int(moved)
            if node.op_type in ("DequantizeLinear", "Transpose"):
                return axis(node.output[0], moved != (node.op_type == "Transpose"))
        return None

    for tensor in graph.initializer:
        along = axis(tensor.name, moved=False) if len(tensor.dims) > 1 else None
        if along is not None:
            yield tensor, along


def sparsify(path: Path, pattern: str) -> Path:
    """Write the same file with zeros in its weights."""
    model = onnx.load(path)
    for tensor, axis in weights_of(model.graph):
        weight = np.ascontiguousarray(with_zeros(numpy_helper.to_array(tensor), pattern, axis))
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    target = path.with_name(f"{path.stem}-{pattern.split(maxsplit=1)[0].replace(':', 'of')}.onnx")
    onnx.save(model, target)
    return target


def with_sparse_initializers(path: Path) -> Path:
    """Write the same file with its weights as ONNX sparse tensors (values and indices)."""
    model = onnx.load(path)
    for tensor in [tensor for tensor, _ in weights_of(model.graph)]:
        flat = numpy_helper.to_array(tensor).reshape(-1)
        indices = np.flatnonzero(flat)
        model.graph.sparse_initializer.append(
            onnx.helper.make_sparse_tensor(
                numpy_helper.from_array(flat[indices], tensor.name),
                numpy_helper.from_array(indices.astype(np.int64)),
                list(tensor.dims),
            )
        )
        model.graph.initializer.remove(tensor)
    target = path.with_name(f"{path.stem}-coo.onnx")
    onnx.save(model, target)
    return target


# --- files ---------------------------------------------------------------------------------


@dataclass
class Made:
    """The files of one network in one precision by pattern, and the size of each packed."""

    paths: dict[str, Path] = field(default_factory=dict)
    packed: dict[str, int] = field(default_factory=dict)


def make_files(name: str, folder: Path) -> dict[str, Made]:
    """Export a network in both precisions, then put zeros into copies of the files."""
    made = {"FP32": Made(), "INT8": Made()}
    for removed in (False, True):
        network, data = new_network(name, removed=removed)
        path = folder / f"{'removed' if removed else 'dense'}-fp32.onnx"
        export(network, path, example_inputs=((data[:1],), {}))
        add_files(made["FP32"], path, network, removed=removed)
        path = path.with_name(path.name.replace("fp32", "int8"))
        add_files(made["INT8"], path, quantized(network, data, path), removed=removed)
    return made


def new_network(name: str, *, removed: bool) -> tuple[nn.Module, Tensor]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = networks.initialize(build(removed=removed)).eval()
    return network, torch.randn(IMAGES, *shape)


def quantized(network: nn.Module, data: Tensor, path: Path) -> nn.Module:
    """Quantize and export a network with default settings; return the stripped model."""
    compression = {
        "algorithm": "quantization",
        "initializer": {
            "range": {"num_init_samples": IMAGES},
            "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
        },
    }
    config = NNCFConfig.from_dict(
        {"input_info": {"sample_size": [1, *data.shape[1:]]}, "compression": compression}
    )
    register_default_init_args(config, [(x, torch.zeros(1)) for x in data.split(1)])
    controller, _ = create_compressed_model(network, config, dump_graphs=False)
    controller.export_model(str(path))
    return controller.strip()


def add_files(made: Made, path: Path, model: nn.Module, *, removed: bool) -> None:
    """Add the exported file; unless channels were removed, also copies of it with zeros."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for pattern in [REMOVED] if removed else [p for p in PATTERNS if p != REMOVED]:
        made.paths[pattern] = path if pattern in (DENSE, REMOVED) else sparsify(path, pattern)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                values = np.ascontiguousarray(with_zeros(parameter.detach().numpy(), pattern))
                parameter.data.copy_(torch.from_numpy(values))
        made.packed[pattern] = save_packed(model, path.with_suffix(".safetensors")).total
        model.load_state_dict(state)


def sizes(made: Made) -> list[list[str]]:
    """Return rows of megabytes: the file, the file compressed by gzip, the packed checkpoint."""
    rows = []
    for pattern in PATTERNS:
        data = made.paths[pattern].read_bytes()
        found = (len(data), len(gzip.compress(data, 6)), made.packed[pattern])
        rows.append([pattern, *(f"{size / 1e6:.1f}" for size in found)])
    return rows


# --- time ----------------------------------------------------------------------------------


@dataclass
class Timed:
    """One file in one runtime: its call, the milliseconds of each, its layers with packed zeros."""

    label: str
    run: Callable[[], Any]
    sparse_layers: str = ""
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def in_openvino(label: str, path: Path, x: Array, threads: int, rate: float | None = None) -> Timed:
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    settings |= {} if rate is None else {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": rate}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    kernels = [
        str(node.get_rt_info()["primitiveType"].astype(str))
        for node in compiled.get_runtime_model().get_ordered_ops()
        if str(node.get_rt_info()["layerType"].astype(str)) in ("FullyConnected", "Convolution")
    ]
    sparse = sum("sparse" in kernel for kernel in kernels)
    return Timed(label, lambda: request.infer([x]), f"{sparse} of {len(kernels)}")


def in_onnx_runtime(label: str, path: Path, x: Array, threads: int) -> Timed:
    opened = OnnxFile(path, threads=threads)
    return Timed(label, lambda: opened({opened.input_names[0]: x}))


def time_in_turn(opened: list[Timed], seconds: float, clock: Callable[[], float]) -> None:
    """Call each once a turn, in an order that is drawn anew each time."""
    for item in opened:
        for _ in range(3):
            item.run()
    draw = np.random.default_rng(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(opened[0].times) < 5:
        for index in draw.permutation(len(opened)):
            start = clock()
            opened[index].run()
            opened[index].times.append(1000 * (clock() - start))


def groups(made: dict[str, Made], x: Array, threads: int) -> Iterator[tuple[str, list[Timed]]]:
    """Yield the runs that are compared with each other; the first of each is the dense file."""
    for precision, found in made.items():
        opened = [in_openvino(p, found.paths[p], x, threads) for p in PATTERNS]
        if precision == "INT8":
            opened += [
                in_openvino(f"{p}, decompression", found.paths[p], x, threads, RATE)
                for p in PATTERNS
                if p != REMOVED
            ]
        yield f"{OpenVINOFile.runtime} {openvino.__version__.split('-')[0]}, {precision}", opened
        opened = [in_onnx_runtime(p, found.paths[p], x, threads) for p in PATTERNS]
        if precision == "FP32":
            opened += list(sparse_initializers(found, x, threads))
        yield f"{OnnxFile.runtime} {onnxruntime.__version__}, {precision}", opened


def sparse_initializers(found: Made, x: Array, threads: int) -> Iterator[Timed]:
    """Yield ONNX Runtime on files with sparse initializers, and say what each file's size is."""
    for pattern in ("50 % zeros", "90 % zeros", "95 % zeros"):
        path = with_sparse_initializers(found.paths[pattern])
        label = f"{pattern}, sparse initializers ({path.stat().st_size / 1e6:.1f} MB)"
        try:
            yield in_onnx_runtime(label, path, x, threads)
        except ExportError as error:
            print(f"{label}: {str(error).splitlines()[0][:300]}")
        try:
            openvino.Core().read_model(str(path))
            print(f"{label}: OpenVINO reads it")
        except RuntimeError as error:
            reasons = [line for line in str(error).splitlines() if line.strip()]
            print(f"{label}: OpenVINO refuses it: {reasons[-1][:200]}")


def latency_rows(opened: list[Timed]) -> list[list[str]]:
    dense = opened[0].median
    rows = []
    for item in opened:
        low, _, high = statistics.quantiles(item.times, n=4)
        spread = f"{low:.1f} to {high:.1f}"
        faster = f"{dense / item.median:.2f} ×"
        rows.append([item.label, f"{item.median:.1f}", spread, faster, item.sparse_layers])
    return rows


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    clock = time.process_time if arguments.processor_time else time.perf_counter
    print(f"\n## {name}")
    made = make_files(name, folder)
    record: dict[str, Any] = {"megabytes": {}, "milliseconds": {}}
    for precision, found in made.items():
        rows = sizes(found)
        record["megabytes"][precision] = rows
        header = [f"{name}, {precision}, MB", "ONNX", "ONNX, gzip", "packed"]
        print(f"\n{markdown(header, rows)}")
    x = np.random.default_rng(0).normal(size=(1, *NETWORKS[name][1])).astype(np.float32)
    for title, opened in groups(made, x, arguments.threads):
        time_in_turn(opened, arguments.seconds, clock)
        rows = latency_rows(opened)
        record["milliseconds"][title] = rows
        header = [title, "median, ms", "middle half", "faster", "sparse kernels"]
        print(f"\n{len(opened[0].times)} calls each\n\n{markdown(header, rows)}", flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each table")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="count the process's time")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    what = "processor time" if arguments.processor_time else "time"
    print(f"{json.dumps(machine())}\n{what}, {arguments.threads} threads")
    amx = "amx" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    print(f"AMX, which OpenVINO's sparse weights decompression needs: {'yes' if amx else 'no'}")
    measure_each(measure, arguments)


if __name__ == "__main__":
    main()
