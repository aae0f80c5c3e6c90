# SPDX-License-Identifier: Apache-2.0
"""Options of batch norm adaptation."""

from __future__ import annotations

from nncf.options import Count, Options, option


class BatchnormAdaptationOptions(Options):
    """How many samples refresh the running statistics of batch norm layers."""

    num_bn_adaptation_samples: Count = option(
        2000,
        "Training samples over which batch norm statistics are measured anew after compression "
        "has changed the activations; 0 switches the adaptation off.",
    )
