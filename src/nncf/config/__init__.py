# SPDX-License-Identifier: Apache-2.0
"""The configuration: a dict read from JSON with comments, checked once at the door.

``NNCFConfig.from_json`` → ``config.options``, typed and frozen → the algorithms.
"""

from nncf.config.nncf_config import NNCFConfig
from nncf.config.register import register_default_init_args
from nncf.config.root import InputInfo, RootOptions

__all__ = ["InputInfo", "NNCFConfig", "RootOptions", "register_default_init_args"]
