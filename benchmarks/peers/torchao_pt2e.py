# SPDX-License-Identifier: Apache-2.0
"""torchao's quantization-aware training of an exported graph (pt2e), for its x86 backend.

Run by the interpreter of an environment that has ``torch`` and ``torchao==0.18.0``.
"""

from __future__ import annotations

import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torch import Tensor, nn
from torchao.quantization.pt2e import move_exported_model_to_train
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from benchmarks.step_server import serve


def quantized(model: nn.Module, batch: Tensor) -> nn.Module:
    """The network with the quantizers of the default configuration for training."""
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    exported = torch.export.export(model.train(), (batch,), strict=True).module()
    prepared = prepare_qat_pt2e(exported, quantizer)
    move_exported_model_to_train(prepared)
    return prepared


if __name__ == "__main__":
    serve(quantized)
