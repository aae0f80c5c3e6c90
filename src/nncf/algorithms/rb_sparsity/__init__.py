# SPDX-License-Identifier: Apache-2.0
"""RB sparsity (regularisation-based): let training itself find out which weights to drop.

The idea
    Each weight carries a trainable number that says how likely it is kept. During training the
    mask is drawn at random from these; a loss term pulls the share of kept weights towards the
    target, while the task's own loss protects the weights that it needs.

The formula
    With logits ``m`` and ``u ~ U(0, 1)``: ``z = m + logit(u)``, ``mask = [sigmoid(z) > ½]``,
    whose gradient is taken as that of ``sigmoid(z)``; in evaluation ``mask = [sigmoid(m) > ½]``.
    The loss is ``((kept / all − (1 − level)) / 0.05)²``.

Paper
    C. Louizos, M. Welling, D. P. Kingma, *Learning Sparse Neural Networks through L0
    Regularization*, 2018 (arXiv:1712.01312), from which it takes the idea.

When to use it
    When accuracy at high levels matters more than training time. It wants batch norm layers, no
    weight decay, and Adam with a learning rate of about 1e-3 for the masks.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from nncf.algorithms.sparsity_options import SPARSITY_ROLE, ScopeOptions, SparsitySchedule
from nncf.options import Former, Fraction, Level, NonNegative, Positive, option


class RBSparsitySchedule(SparsitySchedule):
    """How the level that the loss aims at grows."""

    former: ClassVar[tuple[Former, ...]] = (
        Former(
            "check_sparsity_masks",
            "It checked that all processes have the same masks; remove the key.",
        ),
    )

    schedule: Literal["exponential", "polynomial", "adaptive", "multistep"] = option(
        "exponential",
        'How the level grows; "adaptive" raises it whenever the mask has come near it.',
    )
    patience: Positive = option(1, "Epochs near the current level before it is raised (adaptive).")
    step: Fraction = option(0.05, "By how much the level is raised (adaptive).")
    eps: Fraction = option(0.03, "How near to the current level counts as reached (adaptive).")


class RBSparsityOptions(ScopeOptions):
    """Settings of ``{"algorithm": "rb_sparsity"}``."""

    adaptive: ClassVar[bool] = True
    role: ClassVar[str] = SPARSITY_ROLE

    algorithm: Literal["rb_sparsity"] = option("rb_sparsity", "Names this algorithm.")
    sparsity_init: Level = option(0.0, "Level at the start of training.")
    params: RBSparsitySchedule = option(
        RBSparsitySchedule(), "How the level grows over the epochs."
    )
    compression_lr_multiplier: NonNegative | None = option(
        None,
        "Factor on the gradients of the masks; wins over the key of the same name at the top "
        "level.",
    )
