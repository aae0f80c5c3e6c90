# SPDX-License-Identifier: Apache-2.0
"""What the loops need of Keras, and ``accuracy_aware_fit``, the way of Keras to run them."""

from nncf.training.tensorflow.fit import accuracy_aware_fit as accuracy_aware_fit
from nncf.training.tensorflow.framework import Framework as Framework
