# SPDX-License-Identifier: Apache-2.0
"""A door: the compression state inside a ``tf.train.Checkpoint``."""

from nncf.tensorflow.state import TFCompressionState as TFCompressionState
from nncf.tensorflow.state import TFCompressionStateLoader as TFCompressionStateLoader
