# SPDX-License-Identifier: Apache-2.0
"""A door: statistics as numbers for TensorBoard."""

from nncf.compression.statistics import prepare_for_tensorboard as prepare_for_tensorboard
