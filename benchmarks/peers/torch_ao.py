# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own quantization-aware training of a traced graph, ``torch.ao`` in fx mode.

``torch_ao`` learns the scales, as we do (``_LearnableFakeQuantize``); ``torch_ao_fused``
follows moving averages with fused observers, the default there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    get_default_qat_qconfig,
)
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize
from torch.ao.quantization.quantize_fx import prepare_qat_fx

from benchmarks.step_server import serve


class LearnedChannels(_LearnableFakeQuantize):
    """Learned scales for each channel of a weight; the number of channels is learned as well."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            MovingAveragePerChannelMinMaxObserver,
            -128,
            127,
            channel_len=1,
            dtype=torch.qint8,
            ch_axis=0,
            qscheme=torch.per_channel_symmetric,
            **settings,
        )

    def forward(self, weight: Tensor) -> Tensor:
        if len(self.scale) != len(weight):
            self.scale = nn.Parameter(torch.ones(len(weight)))
            self.zero_point = nn.Parameter(torch.zeros(len(weight)))
        return super().forward(weight)


def prepared(model: nn.Module, batch: Tensor, settings: QConfig) -> nn.Module:
    """Trace the network and put the quantizers of ``settings`` into its graph."""
    mapping = QConfigMapping().set_global(settings)
    return prepare_qat_fx(model.train(), mapping, (batch[:1],))


def learnable(model: nn.Module, batch: Tensor) -> nn.Module:
    """Quantizers with learned scales, which one batch has set before."""
    activation = _LearnableFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    traced = prepared(model, batch, QConfig(activation, LearnedChannels))
    quantizers = [m for m in traced.modules() if isinstance(m, _LearnableFakeQuantize)]
    for quantizer in quantizers:
        quantizer.enable_static_estimate()
    with torch.no_grad():
        traced(batch[:8])
    for quantizer in quantizers:
        quantizer.enable_param_learning()
    return traced


def fused(model: nn.Module, batch: Tensor) -> nn.Module:
    """Quantizers that follow moving averages in one operator with the quantization."""
    return prepared(model, batch, get_default_qat_qconfig("x86"))


if __name__ == "__main__":
    serve(learnable)
