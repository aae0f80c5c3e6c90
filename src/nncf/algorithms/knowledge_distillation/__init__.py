# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: the model before compression teaches the one after.

The idea
    The original model, or a larger one, runs on the same inputs, and a loss term asks the
    compressed model to give the same outputs. They carry more than the labels do: how likely
    each wrong class is. Activations inside can be compared too.

The formula
    ``mse``: ``scale · mean (teacher − student)²``. ``softmax``, on rank-2 outputs:
    ``−scale · T² · mean_batch Σ_c softmax(teacher / T)_c · log_softmax(student / T)_c``.
    A feature: ``scale · mean (teacher − student)² / mean teacher²``.

Paper
    G. Hinton, O. Vinyals, J. Dean, *Distilling the Knowledge in a Neural Network*, 2015
    (arXiv:1503.02531). Features: A. Romero et al., *FitNets*, 2015 (arXiv:1412.6550).

When to use it
    Beside any algorithm that costs accuracy; it takes one more forward pass per step. Below 5
    bits at a temperature near 1.
"""

from __future__ import annotations

from nncf.algorithms.knowledge_distillation.options import (
    FeatureOptions,
    KnowledgeDistillationOptions,
)

__all__ = ["FeatureOptions", "KnowledgeDistillationOptions"]
