# SPDX-License-Identifier: Apache-2.0
"""``controller.export_model``: strip a copy of the trained model, write it, prove it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nncf.compression.parity import ParityReport
from nncf.config import NNCFConfig
from nncf.torch.calibration import batch_size
from nncf.torch.export import Naming, export
from nncf.torch.inputs import example_arguments, first_batch, registered_loader
from nncf.torch.strip import strip_compressed
from nncf.torch.structure import map_tensors


def export_model(
    model: nn.Module,
    config: NNCFConfig,
    path: str | Path,
    *,
    save_format: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    model_args: tuple[Any, ...] | None = None,
) -> ParityReport:
    """Write the deployed file of a compressed model and return how it compares with the model.

    The file is made and checked with one sample: the first of the registered data loader, or
    one made from ``input_info``. ``model_args`` adds arguments: positional ones, then, as the
    last element, a dict of keyword ones. The model, its mode and its device stay as they are.

    ``save_format``: "onnx" or "onnx_<opset>" (QuantizeLinear and DequantizeLinear), or
    "onnx_fakequantize" (OpenVINO's FakeQuantize; the default when the configuration says
    ``"export_to_onnx_standard_ops": false``), or "openvino" (a path ending in ``.xml``).

    Raises ExportError, ParityError, MissingDependency as ``nncf.torch.export.export`` does;
    nothing is then left at ``path``.
    """
    trained = copy.deepcopy(model).cpu().eval()
    args, kwargs = _one_sample(trained, config)
    if model_args:
        extra = model_args[-1] if isinstance(model_args[-1], dict) else {}
        args = (*args, *(model_args[:-1] if isinstance(model_args[-1], dict) else model_args))
        kwargs = {**kwargs, **extra}
    if save_format in (None, "onnx") and Path(path).suffix == ".onnx" and _wants_fake_quantize(config):
        save_format = "onnx_fakequantize"
    return export(
        strip_compressed(trained),
        path,
        example_inputs=(args, kwargs),
        reference=trained,
        save_format=save_format,
        naming=Naming(input_names, output_names),
    )


def _one_sample(model: nn.Module, config: NNCFConfig) -> tuple[tuple[Any, ...], dict[str, Any]]:
    loader = registered_loader(config)
    if loader is None:
        args, kwargs = example_arguments(model, config)
    else:
        args, kwargs = first_batch(model, loader, torch.device("cpu"))
    size = batch_size(args, kwargs, loader)

    def first(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:1] if tensor.dim() and len(tensor) == size else tensor

    return map_tensors(args, first), map_tensors(kwargs, first)


def _wants_fake_quantize(config: NNCFConfig) -> bool:
    return any(
        getattr(item, "export_to_onnx_standard_ops", None) is False
        for item in config.options.compression
    )
