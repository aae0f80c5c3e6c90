# SPDX-License-Identifier: Apache-2.0
"""``nncf config-schema``: the JSON schema of configurations, for editors and checks."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nncf.config.schema import config_schema


def add_to(commands: Any) -> None:
    text = "print the JSON schema of configuration files"
    parser = commands.add_parser("config-schema", help=text, description=text)
    parser.set_defaults(run=run)


def run(_options: argparse.Namespace) -> None:
    print(json.dumps(config_schema(), indent=2, ensure_ascii=False))
