# SPDX-License-Identifier: Apache-2.0
"""Loops that own training: they find the epochs, or the compression, that an accuracy allows.

``create_accuracy_aware_training_loop`` makes one from the section ``accuracy_aware_training`` of a
configuration. What it decides is in plain values: a ``Goal`` judges a metric, ``Search`` chooses the
next compression rate, ``Progress`` is all that a run has come to. What touches the model is in the
``Runner`` and, for each framework, in a file of its name.
"""

from nncf.training.loops import (
    AdaptiveCompressionTrainingLoop as AdaptiveCompressionTrainingLoop,
)
from nncf.training.loops import (
    EarlyExitCompressionTrainingLoop as EarlyExitCompressionTrainingLoop,
)
from nncf.training.loops import (
    create_accuracy_aware_training_loop as create_accuracy_aware_training_loop,
)
