# SPDX-License-Identifier: Apache-2.0
"""Callbacks for ``fit``; the documents promise some of them under ``nncf.tensorflow.callbacks``."""

from nncf.tensorflow.callbacks.compression import (
    create_compression_callbacks as create_compression_callbacks,
)
