# SPDX-License-Identifier: Apache-2.0
"""Doors: import paths that documents of earlier releases name."""
