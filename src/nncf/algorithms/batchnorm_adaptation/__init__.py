# SPDX-License-Identifier: Apache-2.0
"""Batch norm adaptation: statistics of the compressed model, before it trains.

The idea
    A batch norm normalises with the mean and variance that it measured during the training of
    the uncompressed model. Rounded, masked or pruned layers produce other means and variances,
    so the old ones shift every activation behind them. Running some training data through the
    compressed model, with nothing but the batch norms in training mode, measures them anew. It
    costs no gradient and often brings back most of the accuracy that compression took.

The formula
    For each batch with mean m and unbiased variance v, the running statistics follow with the
    layer's own momentum p (0.1 unless the model says otherwise)::

        mean ← (1 − p) · mean + p · m
        var  ← (1 − p) · var  + p · v

    so after k batches the old ones weigh (1 − p)^k: 1.5 % after 40 batches.

Paper
    The correction of statistics after compression is described by X. Sun et al., *Hybrid 8-bit
    Floating Point Training and Inference for Deep Neural Networks*, 2019, for low precision,
    and by B. Li et al., *EagleEye: Fast Sub-net Evaluation for Efficient Neural Network
    Pruning*, 2020 (arXiv:2007.02491), for pruning.

When to use it
    Always when there are batch norms and training data, which is the default: 2000 samples,
    whenever a loader is registered. Batches should be as large as in training, since small
    ones measure variances badly. Models with layer or group norm have nothing to adapt.
"""

from __future__ import annotations

from nncf.algorithms.batchnorm_adaptation.options import BatchnormAdaptationOptions

__all__ = ["BatchnormAdaptationOptions"]
