# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: writing and running its intermediate representation."""
