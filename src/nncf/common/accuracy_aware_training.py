# SPDX-License-Identifier: Apache-2.0
"""A door: loops that train until the accuracy is good enough."""

from nncf.training.loops import (
    create_accuracy_aware_training_loop as create_accuracy_aware_training_loop,
)
