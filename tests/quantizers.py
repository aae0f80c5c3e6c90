# SPDX-License-Identifier: Apache-2.0
"""Quantizers that several tests are about."""

from __future__ import annotations

import torch

from nncf.algorithms.quantization.scheme import Scheme
from nncf.algorithms.quantization.torch import FakeQuantizer

X = [-1.2, -0.5, -0.003, 0.0, 0.26, 0.5, 0.99, 1.7]

SCHEMES = [
    Scheme(signed=True),
    Scheme(signed=False),
    Scheme(signed=True, narrow_range=True),
    Scheme(signed=True, half_range=True),
    Scheme(signed=True, bits=4),
    Scheme(signed=False, bits=2),
    Scheme(mode="asymmetric"),
    Scheme(mode="asymmetric", half_range=True),
    Scheme(mode="asymmetric", bits=4),
    Scheme(signed=True, logarithm_scale=True),
    Scheme(mode="asymmetric", logarithm_scale=True),
    Scheme(signed=True, lr_multiplier=3.0),
]


def made(scheme, shape=(1,), *, low=-1.0, high=1.0):
    """Return a quantizer whose range has been set to [low, high]."""
    quantizer = FakeQuantizer(scheme, shape)
    quantizer.set_range(torch.as_tensor(low), torch.as_tensor(high))
    return quantizer
