# SPDX-License-Identifier: Apache-2.0
"""Doors to what training scripts use beside the controller."""
