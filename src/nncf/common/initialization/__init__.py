# SPDX-License-Identifier: Apache-2.0
"""Doors to what initialisation needs."""
