# SPDX-License-Identifier: Apache-2.0
"""A door to the logger."""

from nncf.logging import nncf_logger as nncf_logger
