# SPDX-License-Identifier: Apache-2.0
"""What the torch files of several algorithms share."""
