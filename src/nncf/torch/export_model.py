# SPDX-License-Identifier: Apache-2.0
"""``controller.export_model``: strip a copy of the trained model, write it, prove it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nncf.compression.parity import DEFAULT_TOLERANCE, ParityReport, Tolerance
from nncf.config import NNCFConfig
from nncf.torch.calibration import batch_size
from nncf.torch.export import Naming, Proof, Samples, checked_format, export, temporary_folder
from nncf.torch.inputs import example_arguments, first_batch, registered_loader
from nncf.torch.strip import strip_compressed
from nncf.torch.structure import map_tensors

_COMPARED = 16
"""Samples on which the outputs of the file are compared with the trained model's."""


def export_model(  # noqa: PLR0913  # the documented signature
    model: nn.Module,
    config: NNCFConfig,
    path: str | Path,
    *,
    save_format: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    model_args: tuple[Any, ...] | None = None,
    tolerance: Tolerance | None = None,
) -> ParityReport:
    """Write the deployed file of a compressed model and return how it compares with the model.

    The file takes one sample at a time and is compared on up to 16 samples: the first of the
    registered data loader, or one made from ``input_info``. ``model_args`` adds arguments:
    positional ones, then, as the last element, a dict of keyword ones. ``tolerance`` replaces
    the default of ``nncf.compression.parity``. The model, its mode and its device stay.

    ``save_format``: "onnx" or "onnx_<opset>" (QuantizeLinear and DequantizeLinear), "onnx_int8"
    (the same without packing weights of 4 bits and fewer), or "onnx_fakequantize" (OpenVINO's FakeQuantize; the default when the configuration says
    ``"export_to_onnx_standard_ops": false``), or "openvino" (a path ending in ``.xml``).

    Raises ExportError, ParityError, MissingDependency as ``nncf.torch.export.export`` does;
    nothing is then left at ``path``.
    """
    trained = copy.deepcopy(model).cpu().eval()
    samples = [_with_arguments(sample, model_args or ()) for sample in _samples(trained, config)]
    return export(
        strip_compressed(trained),
        path,
        example_inputs=samples[0],
        proof=Proof(trained, samples[1:], tolerance or DEFAULT_TOLERANCE),
        save_format=_save_format(config, path, save_format),
        naming=Naming(input_names, output_names),
    )


def check_export(config: NNCFConfig, path: str | Path, save_format: str | None) -> None:
    """Raise what ``export_model`` raises about the form of the file and its place."""
    path = Path(path)
    checked_format(path, _save_format(config, path, save_format))
    with temporary_folder(path):
        pass


def _save_format(config: NNCFConfig, path: str | Path, save_format: str | None) -> str | None:
    plain = save_format in (None, "onnx") and Path(path).suffix == ".onnx"
    return "onnx_fakequantize" if plain and _wants_fake_quantize(config) else save_format


def _samples(model: nn.Module, config: NNCFConfig) -> list[Samples]:
    """Return the forward's arguments for single samples, cut from one batch."""
    loader = registered_loader(config)
    if loader is None:
        given = example_arguments(model, config)
    else:
        given = first_batch(model, loader, torch.device("cpu"))
    size = batch_size(*given, loader)

    def sample(index: int) -> Samples:
        def cut(tensor: torch.Tensor) -> torch.Tensor:
            batched = tensor.dim() > 0 and len(tensor) == size
            return tensor[index : index + 1] if batched else tensor

        return map_tensors(given[0], cut), map_tensors(given[1], cut)

    return [sample(index) for index in range(min(size, _COMPARED))]


def _with_arguments(sample: Samples, extra: tuple[Any, ...]) -> Samples:
    keywords = extra[-1] if extra and isinstance(extra[-1], dict) else {}
    positional = extra[:-1] if extra and isinstance(extra[-1], dict) else extra
    return (*sample[0], *positional), {**sample[1], **keywords}


def _wants_fake_quantize(config: NNCFConfig) -> bool:
    return any(
        getattr(item, "export_to_onnx_standard_ops", None) is False
        for item in config.options.compression
    )
