# SPDX-License-Identifier: Apache-2.0
"""Brevitas: each convolution and linear replaced by its quantized layer, scales learned.

Run by the interpreter of an environment that has ``torch`` and ``brevitas==0.13.4``. Its
function for whole networks is told to give weights a scale for each channel, as the other tools
do; additions stay in floating point, its default for layers.
"""

from __future__ import annotations

import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import LAYERWISE_COMPUTE_LAYER_MAP, layerwise_quantize
from brevitas.quant import Int8WeightPerChannelFloat
from torch import Tensor, nn

from benchmarks.step_server import serve


def quantized(model: nn.Module, batch: Tensor) -> nn.Module:
    """The network with quantized layers, past the first steps that only collect ranges."""
    layers = dict(LAYERWISE_COMPUTE_LAYER_MAP)
    for kind in (nn.Conv2d, nn.Linear):
        replacement, settings = layers[kind]
        layers[kind] = (replacement, {**settings, "weight_quant": Int8WeightPerChannelFloat})
    model = layerwise_quantize(model, layers)
    with torch.no_grad(), calibration_mode(model):
        model(batch[:8])
    return model.train()


if __name__ == "__main__":
    serve(quantized)
