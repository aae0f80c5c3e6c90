# SPDX-License-Identifier: Apache-2.0
"""Accuracy of ResNet-20 and ResNet-56 on CIFAR-10 after sparsity, pruning or with few bits.

    python -m benchmarks.compression_cifar10 --data FOLDER --taught [--rows pruned w4a4] [--seeds 0]
    python -m benchmarks.compression_cifar10 --data FOLDER --taught --full   # for a GPU: hours

The folder is that of ``benchmarks.accuracy_cifar10``, as are images and baseline. Every row starts
from the same floating-point baseline and trains for the same number of epochs (``--epochs``);
"continued" is the baseline trained on without compression. The last epoch counts, none is picked.
With ``--taught`` the baseline is the teacher of every compressed row. ``--export`` also writes each
model as ONNX and OpenVINO IR, which proves that the files compute what was trained, or says why one
is refused. ``--full`` is
the protocol of the published figures: all images, 200 epochs, ResNet-56 pruned to MACs / 2.1 and
/ 2.55. ``--keep FOLDER`` stores baselines there, for the next call. Needs Pillow.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import accuracy_cifar10 as cifar
from benchmarks.records import find, machine, markdown, mean_and_spread, write
from nncf import NNCFConfig, create_compressed_model, register_default_init_args
from nncf.errors import ParityError
from nncf.torch import save_packed

FEW_BITS = {"temperature": 1, "scale": 0.7}
"""How few bits are taught: they stand no temperature above 1 and no larger gradients."""


@dataclass(frozen=True)
class Row:
    """One network under one configuration; ``compression`` gets the number of epochs.

    ``teacher`` has the settings of distillation with ``--taught``; of ``scale`` the task's own loss
    gets the rest.
    """

    network: str
    published: str
    compression: Callable[[int], list[dict[str, Any]]]
    teacher: Mapping[str, float] = field(default_factory=lambda: {"temperature": 3})
    root: Mapping[str, Any] = field(default_factory=dict)


def pruned(share: float) -> Callable[[int], list[dict[str, Any]]]:
    """Return filter pruning to a share of FLOPs, over the first third of the epochs."""

    def sections(epochs: int) -> list[dict[str, Any]]:
        params = {
            "schedule": "exponential",
            "pruning_flops_target": share,
            "pruning_steps": max(1, epochs // 3),
            "filter_importance": "L2",
            "all_weights": True,
            "prune_first_conv": True,
            "prune_downsample_convs": True,
            "channel_multiple": 1,
        }
        return [{"algorithm": "filter_pruning", "params": params}]

    return sections


def sparse(level: float) -> Callable[[int], list[dict[str, Any]]]:
    """Return magnitude sparsity, reached over the first half of the epochs."""

    def sections(epochs: int) -> list[dict[str, Any]]:
        params = {
            "schedule": "polynomial",
            "power": 3,
            "weight_importance": "abs",
            "sparsity_target": level,
            "sparsity_target_epoch": max(1, epochs // 2),
            "sparsity_freeze_epoch": max(1, epochs // 2) + 1,
            "update_per_optimizer_step": True,
        }
        return [{"algorithm": "magnitude_sparsity", "params": params}]

    return sections


def quantized(weights: int, activations: int | None, published: str, **options: Any) -> Row:
    """Return quantization with so many bits; activations in floating point for None."""
    section = {"algorithm": "quantization", "weights": {"bits": weights}, **options}
    section["activations"] = (
        {"ignored_scopes": ["{re}.*"]} if activations is None else {"bits": activations}
    )
    return Row("resnet20", published, lambda _: [section], FEW_BITS, {"target_device": "TRIAL"})


def binarized(mode: str, published: str) -> Row:
    """Return binarization of all layers but the first and the last."""
    ends = ["CifarResNet/Conv2d[conv1]/conv2d_0", "{re}.*Linear.*"]
    section = {"algorithm": "binarization", "mode": mode, "ignored_scopes": ends}
    return Row("resnet20", published, lambda _: [section], FEW_BITS)


ROWS: dict[str, Row] = {
    "continued": Row("resnet20", "", lambda _: []),
    "pruned": Row("resnet20", "0.15–0.7", pruned(1 - 1 / 1.37)),
    "sparse70": Row("resnet20", "0.35 at 69 %", sparse(0.7)),
    "sparse90": Row("resnet20", "", sparse(0.9)),
    "w8a8": quantized(8, 8, "0.0"),
    "w4a4": quantized(4, 4, "0.5 (APoT)"),
    "w3a3": quantized(3, 3, "0.5 (APoT)"),
    "w2a2": quantized(2, 2, "2.0 (APoT)"),
    "w1": quantized(1, None, "1.2 (IR-Net)"),
    "xnor": binarized("xnor", "5.2 (IR-Net)"),
    "dorefa": binarized("dorefa", "3.6 (AdaBin)"),
}
FULL_ROWS: dict[str, Row] = {
    **ROWS,
    "pruned56_2.1": Row("resnet56", "0.07", pruned(1 - 1 / 2.1)),
    "pruned56_2.55": Row("resnet56", "0.17", pruned(1 - 1 / 2.55)),
}


def baseline(
    network: str, seed: int, training: cifar.Images, arguments: argparse.Namespace
) -> nn.Module:
    """Return the fine-tuned network of a seed, from ``--keep`` if it is there."""
    model = cifar.read_network(arguments.data / "cifar10_resnet_weights", int(network[6:]))
    model.to(arguments.device)
    kept = arguments.keep / f"{network}-{seed}.pt" if arguments.keep else None
    if kept is not None and kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model
    torch.manual_seed(seed)
    batches = cifar.Placed(cifar.TrainingBatches(training, arguments.batch, seed), arguments.device)
    cifar.train(model, batches, arguments.baseline_epochs, arguments.baseline_rate)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), kept)
    return model


def run(
    name: str, row: Row, model: nn.Module, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train one row from a baseline; return what came of it, accuracies in percent."""
    training, test = arguments.images_read
    model = copy.deepcopy(model)
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    found: dict[str, Any] = {"row": name, "seed": seed, "baseline": cifar.accuracy(model, test)}
    batches = cifar.Placed(
        cifar.TrainingBatches(training, arguments.batch, seed + 1000), arguments.device
    )
    sections, controller = row.compression(arguments.epochs), None
    weight = 1.0
    if sections and arguments.taught:
        kind = {"algorithm": "knowledge_distillation", "type": "softmax"}
        sections = [*sections, {**kind, **row.teacher}]
        weight -= row.teacher.get("scale", 0.0)
    if sections:
        shape = {"input_info": {"sample_size": [1, 3, 32, 32]}}
        config = NNCFConfig.from_dict({**row.root, **shape, "compression": sections})
        register_default_init_args(config, batches)
        controller, model = create_compressed_model(model, config, dump_graphs=False)
    torch.manual_seed(seed)
    plan = arguments.epochs, arguments.rate, controller
    cifar.train(model, batches, *plan, task_weight=weight)
    found["trained"] = cifar.accuracy(model, test)
    if controller is not None:
        found["stripped"] = cifar.accuracy(controller.strip(), test)
        found["statistics"] = _achieved(controller) | _sizes(controller, dense)
        if arguments.export:
            found |= _exported(controller)
    print(f"# {name} seed {seed}: {found}", flush=True)
    return found


def _sizes(controller: Any, dense: int) -> dict[str, float]:
    """Return how many times smaller the packed checkpoint is than ``dense`` bytes."""
    small = controller.strip().cpu()
    with tempfile.TemporaryDirectory() as folder:
        packed = save_packed(small, Path(folder) / "packed.safetensors").total
    return {"size": dense / packed}


def _exported(controller: Any) -> dict[str, dict[str, Any]]:
    """Write both kinds of files; return the sizes of those proven, and why others are refused."""
    files: dict[str, int] = {}
    refused: dict[str, str] = {}
    for name in ("model.onnx", "model.xml"):
        with tempfile.TemporaryDirectory() as folder:
            try:
                controller.export_model(str(Path(folder) / name))
            except ParityError as error:
                refused[name] = str(error)
            else:
                files[name] = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {"files": files, "refused": refused}


def _achieved(controller: Any) -> dict[str, float]:
    """Return what the statistics say of the end: MACs and parameters, or zeros."""
    statistics = controller.statistics()
    if statistics.filter_pruning is not None:
        model = statistics.filter_pruning.model_statistics
        return {
            "MACs": model.full.flops / model.current.flops,
            "parameters": model.full.parameters / model.current.parameters,
        }
    if statistics.magnitude_sparsity is not None:
        sparsity = statistics.magnitude_sparsity.model_statistics
        return {"zeros": sparsity.sparsity_level_for_layers}
    return {}


def report(runs: list[dict[str, Any]], rows: Mapping[str, Row], epochs: int) -> str:
    """Return a table: one line per row, mean and spread over its seeds."""
    lines = []
    for name, row in rows.items():
        own = [found for found in runs if found["row"] == name]
        if not own:
            continue
        cells = [
            mean_and_spread(found["baseline"] for found in own),
            mean_and_spread(found["trained"] for found in own),
            mean_and_spread(found["baseline"] - found["trained"] for found in own),
        ]
        achieved = own[0].get("statistics", {})
        lines.append(
            [
                *(name, row.network, ", ".join(f"{k} {v:.3g}" for k, v in achieved.items())),
                *(f"{mean:.2f} ± {spread:.2f}" for mean, spread in cells),
                *(row.published, str(epochs), str(len(own))),
            ]
        )
    header = ["row", "network", "achieved", "FP32 baseline", "compressed", "drop", "published drop",
              "epochs", "seeds"]  # fmt: skip
    return markdown(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the images and the weights")
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    parser.add_argument("--keep", type=Path, help="folder for baselines")
    parser.add_argument("--rows", nargs="+", choices=[*FULL_ROWS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--taught", action="store_true", help="with the baseline as teacher")
    parser.add_argument("--export", action="store_true", help="write and prove both kinds of files")
    parser.add_argument("--full", action="store_true", help="all images and 200 epochs")
    parser.add_argument("--images", type=int, default=10_000, help="images to train on")
    parser.add_argument("--baseline-epochs", type=int, default=6)
    parser.add_argument("--baseline-rate", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=30, help="of every row")
    parser.add_argument("--rate", type=float, default=0.03, help="learning rate of these epochs")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("not measured: pass --data FOLDER, which holds the images and the weights")
        return
    rows = FULL_ROWS if arguments.full else ROWS
    if arguments.full:
        arguments.images, arguments.baseline_epochs, arguments.epochs = None, 60, 200
    if missing := [name for name in arguments.rows or () if name not in rows]:
        parser.error(f"--rows {' '.join(missing)}: these need --full")
    rows = {name: row for name, row in rows.items() if name in (arguments.rows or rows)}
    torch.set_num_threads(arguments.threads)
    folder = arguments.data / "cifar10_jpeg"
    choices = {k: str(v) for k, v in vars(arguments).items() if k not in ("data", "keep", "output")}
    print(json.dumps(machine()))
    print(json.dumps(choices))
    arguments.images_read = (
        cifar.read_images(find(folder, "train.zip"), arguments.images),
        cifar.read_images(find(folder, "test*.zip")),
    )
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for name, row in rows.items():
            model = baseline(row.network, seed, arguments.images_read[0], arguments)
            runs.append(run(name, row, model, seed, arguments))
            write(arguments.output, {"machine": machine(), "choices": choices, "runs": runs})
    print("\n" + report(runs, rows, arguments.epochs))


if __name__ == "__main__":
    main()
