# SPDX-License-Identifier: Apache-2.0
"""What the tensorflow files of several algorithms share."""
