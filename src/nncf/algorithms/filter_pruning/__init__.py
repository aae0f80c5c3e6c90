# SPDX-License-Identifier: Apache-2.0
"""Filter pruning: remove whole filters of convolutions, so that what remains is a smaller network.

The idea
    A filter that contributes little is masked to zero, with its bias and its batch norm channel;
    training goes on. In the end the channel can be cut out of this layer and of all layers that
    read it, and any runtime is faster for it. Layers whose outputs are added lose the same
    channels, so they are ranked as one group.

The formula
    Importance of filter ``i``: ``‖f_i‖₁``, ``‖f_i‖₂``, or ``Σ_j ‖f_i − f_j‖₂`` (geometric
    median: a filter near all others is replaceable). The least important go, per group or over
    all groups, until the wanted share of filters or of operations (FLOPs) is gone.

Papers
    H. Li et al., *Pruning Filters for Efficient ConvNets*, 2017 (arXiv:1608.08710). Y. He et
    al., *Filter Pruning via Geometric Median*, 2019 (arXiv:1811.00250). T.-W. Chin et al.,
    *Towards Efficient Model Compression via Learned Global Ranking*, 2020 (arXiv:1904.12368).

When to use it
    For speed on any hardware, on networks of convolutions with some capacity to spare.
"""

from __future__ import annotations

from nncf.algorithms.filter_pruning.options import (
    FilterPruningOptions,
    FilterPruningParams,
    LegrOptions,
)

__all__ = ["FilterPruningOptions", "FilterPruningParams", "LegrOptions"]
