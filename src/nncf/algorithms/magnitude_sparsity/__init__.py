# SPDX-License-Identifier: Apache-2.0
"""Magnitude sparsity: zero the smallest weights, a few more each epoch, and train the rest.

The idea
    Small weights matter little. A mask sets the smallest share of them to zero; training goes
    on, the remaining weights take over, and the share grows until it reaches its target.

The formula
    Importance of a weight: ``|w|``, or ``|w| / ‖W‖₂`` so that layers of different scale compare
    fairly. At level ``p`` the ``⌊N p⌋`` least important of all N weights are zero, at level 0
    none; of equals the first go first. The level follows a schedule, by default the polynomial
    ``p_T − (p_T − p_0)(1 − t/T)^0.9``. With a pattern N:M only the M − N smallest of each M
    neighbouring input channels may go, and at the end all of them have gone.

Paper
    M. Zhu, S. Gupta, *To prune, or not to prune*, 2017 (arXiv:1710.01878).

When to use it
    When the runtime has sparse kernels, or the model file is to be compressed. Half of the
    weights usually go without loss; it adds no trainable parameters and costs little time.
"""

from __future__ import annotations

from nncf.algorithms.magnitude_sparsity.options import MagnitudeSparsityOptions

__all__ = ["MagnitudeSparsityOptions"]
