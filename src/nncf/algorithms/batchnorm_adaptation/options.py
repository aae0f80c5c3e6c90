# SPDX-License-Identifier: Apache-2.0
"""Options of batch norm adaptation."""

from __future__ import annotations

from typing import ClassVar

from nncf.options import Count, Former, Options, option


class BatchnormAdaptationOptions(Options):
    """How many samples refresh the running statistics of batch norm layers."""

    former: ClassVar[tuple[Former, ...]] = (
        Former(
            "num_bn_forget_samples",
            "Adaptation needs no samples to forget the old statistics; remove the key.",
        ),
    )

    num_bn_adaptation_samples: Count = option(
        2000,
        "Training samples over which batch norm statistics are measured anew after compression "
        "has changed the activations; 0 switches the adaptation off.",
    )
