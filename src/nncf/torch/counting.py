# SPDX-License-Identifier: Apache-2.0
"""Count what is zero in the parameters of a model."""

from __future__ import annotations

import torch
from torch import nn

from nncf.torch.intercept import Compression


def zero_counts(model: nn.Module) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return ``{name: (shape, number of zeros)}`` of the model's own parameters.

    A parameter of several modules counts once, under its first name; the parameters of
    CompressionOps do not count.
    """
    inside = {id(p) for part in model.modules() if isinstance(part, Compression)
              for p in part.parameters()}  # fmt: skip
    own = {name: p for name, p in model.named_parameters() if id(p) not in inside}
    if not own:
        return {}
    device = next(iter(own.values())).device
    with torch.no_grad():
        found = [p.numel() - torch.count_nonzero(p).to(device) for p in own.values()]
        zeros = torch.stack(found).tolist()  # one wait for the device, however many parameters
    return {name: (tuple(p.shape), int(n)) for (name, p), n in zip(own.items(), zeros, strict=True)}
