# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: every quantizer gets the bit width that suits its place.

The idea
    Few bits hurt some layers much and others hardly. With one width for all, the most sensitive
    layer decides; with a width for each, the bits go where they matter. Quantization asks this
    room for the widths before it sets its ranges (``initializer.precision``).

Three ways
    ``manual``: the user writes them, scope by scope. ``hawq``: computed from second derivatives.
    ``autoq``: an agent tries policies and learns from the accuracy they give.

The formula of ``hawq``
    A small change d of the weights of a trained network raises its loss by about ½ dᵀHd, where H
    is the Hessian. If the change is rounding, of no particular direction, a layer of n weights
    adds ``tr(H) / n · ‖Q(W) − W‖²``. Minimised is the sum over all layers, under a budget
    (operations, bytes or milliseconds), as an integer programme that is solved exactly.

Papers
    Z. Dong et al., *HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks*, 2019
    (arXiv:1911.03852). Z. Yao et al., *HAWQ-V3: Dyadic Neural Network Quantization*, 2020
    (arXiv:2011.10680; the integer programme). K. Wang et al., *HAQ: Hardware-Aware Automated
    Quantization with Mixed Precision*, 2018 (arXiv:1811.08886; the agent).

When to use it
    When 8 bits are too many and the same few bits everywhere cost too much accuracy. No common
    runtime computes faster with fewer than 8 bits: what is won is size, unless the device is
    made for it.
"""
