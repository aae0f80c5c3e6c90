# SPDX-License-Identifier: Apache-2.0
"""``nncf size``: where the bytes of a packed checkpoint or an exported file go."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nncf.compression.sizes import SizeTable


def add_to(commands: Any) -> None:
    text = "print where every byte of an exported file or a packed checkpoint goes"
    parser = commands.add_parser("size", help=text, description=text)
    parser.add_argument(
        "file",
        metavar="FILE",
        help="ONNX file (.onnx), OpenVINO IR (.xml, its .bin beside it), packed checkpoint or any "
        "other safetensors file (other endings)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    print(size_table(options.file))


def size_table(path: str) -> SizeTable:
    """Return the table of a file, by its ending."""
    if Path(path).suffix == ".onnx":
        from nncf.onnx import size as onnx_file

        return onnx_file.size_table(path)
    if Path(path).suffix == ".xml":
        from nncf.openvino import size as ir

        return ir.size_table(path)
    from nncf.compression import packed_file

    return packed_file.size_table(path)
