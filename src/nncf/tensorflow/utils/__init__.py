# SPDX-License-Identifier: Apache-2.0
"""Doors: import paths that the documents promise."""
