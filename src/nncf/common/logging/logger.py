# SPDX-License-Identifier: Apache-2.0
"""A door to the logger and its settings."""

from nncf.logging import disable_logging as disable_logging
from nncf.logging import nncf_logger as nncf_logger
from nncf.logging import set_log_file as set_log_file
from nncf.logging import set_log_level as set_log_level
