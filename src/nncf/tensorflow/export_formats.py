# SPDX-License-Identifier: Apache-2.0
"""Which files a Keras model can be written to, and where they are written."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nncf.errors import ExportError, MissingDependency, UnsupportedFormat

FORMATS = ("saved_model", "litert", "onnx", "onnx_<opset>", "onnx_int8", "openvino", "keras")

_ALIASES = {"tf": "saved_model", "tflite": "litert"}

_GONE = {
    "frozen_graph": '"frozen_graph" is a format of TensorFlow 1. Expected "saved_model", which '
    "version 2 reads, with the same graph inside.",
    "h5": 'Keras 3 does not read its fake quantization back from an ".h5" file. Expected a path '
    'that ends in ".keras", or "saved_model".',
}
"""Formats of earlier releases, and what takes their place."""

_ENDINGS = {
    ".tflite": "litert",
    ".onnx": "onnx",
    ".xml": "openvino",
    ".keras": "keras",
}

_PACKAGES = {
    "litert": (("ai_edge_litert", "tf"),),
    "onnx": tuple((name, "onnx") for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime")),
    "openvino": (("onnx", "onnx"), ("onnx_ir", "onnx"), ("openvino", "openvino")),
}


@dataclass(frozen=True)
class Format:
    """What to write: ``kind`` is "saved_model", "litert", "onnx", "openvino" or "keras".

    ``opset`` None leaves it to the export. ``packs``: whether weights of 4 bits and fewer take
    less than a byte each in ONNX and OpenVINO.
    """

    kind: str
    opset: int | None = None
    packs: bool = True

    @property
    def has_names(self) -> bool:
        """Whether inputs and outputs of the file can be given names."""
        return self.kind in ("litert", "onnx", "openvino")

    @classmethod
    def choose(cls, path: Path, save_format: str | None) -> Format:
        """Read ``save_format``, by default from the path's ending. Raises UnsupportedFormat."""
        by_ending = "h5" if path.suffix == ".h5" else _ENDINGS.get(path.suffix)
        if save_format is None and by_ending is None and path.suffix:
            raise UnsupportedFormat(
                f"The ending of {path.name!r} says no format. Expected none for a SavedModel, or "
                f"one of {', '.join(_ENDINGS)}."
            )
        text = save_format or by_ending or "saved_model"
        text = _ALIASES.get(text, text)
        match = re.fullmatch(r"onnx_(\d+)", text)
        if text in _GONE:
            raise UnsupportedFormat(f"Unsupported saving format: {_GONE[text]}")
        if text not in FORMATS[:3] + FORMATS[4:] and not match:
            raise UnsupportedFormat(
                f"Unsupported saving format: {save_format!r}. Available formats: {list(FORMATS)}."
            )
        kind = "onnx" if match or text == "onnx_int8" else text
        if (by_ending or kind) != kind or (by_ending is None and kind in ("keras", "openvino")):
            ending = next((e for e, name in _ENDINGS.items() if name == kind), "no ending")
            raise UnsupportedFormat(
                f"{path.name!r} and the format {text!r} do not go together. Expected: {ending}."
            )
        return cls(kind, int(match[1]) if match else None, packs=text != "onnx_int8")


def checked_format(path: Path, save_format: str | None) -> Format:
    """Return what is to be written, once packages are there and the runtime reads its opset.

    Raises UnsupportedFormat and MissingDependency.
    """
    chosen = Format.choose(path, save_format)
    needed = _PACKAGES.get(chosen.kind, ())
    if chosen.kind in ("onnx", "openvino"):
        needed = (("tf2onnx", "tf"), *needed)
    for package, extra in needed:
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise MissingDependency(name, extra, f"Export to {chosen.kind}")
    if chosen.opset is not None:
        from nncf.onnx.run import check_opset

        check_opset(chosen.opset)
    return chosen


@contextmanager
def temporary_folder(path: Path, chosen: Format) -> Iterator[Path]:
    """Yield a folder beside ``path``, so that renaming out of it is one step.

    Raises ExportError when the folder of ``path`` is absent or cannot be written, or when what is
    at ``path`` is not to be replaced.
    """
    if path.is_dir() and chosen.kind != "saved_model":
        raise ExportError(f"{path} is a folder. Expected: the name of a file.")
    if chosen.kind == "saved_model" and path.exists() and not _replaceable(path):
        raise ExportError(
            f"{path} exists and is no SavedModel. Expected a new name, an empty folder, or a "
            "SavedModel, which is replaced."
        )
    try:
        holder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.")
    except OSError as error:
        raise ExportError(
            f"Cannot write to {path.parent}: {error.strerror}. Create the folder, or choose "
            "another path."
        ) from error
    with holder as name:
        yield Path(name)


def _replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / "saved_model.pb").exists() or not any(path.iterdir()))


def put_in_place(folder: Path, path: Path) -> None:
    """Move what was written in ``folder`` beside it, to ``path``; the file that is opened last."""
    for item in sorted(folder.iterdir(), key=lambda item: item.name == path.name):
        target = path.parent / item.name
        if item.is_dir() and target.is_dir():
            old = folder / f"{item.name}.old"
            target.replace(old)
            item.replace(target)
            shutil.rmtree(old)
        else:
            item.replace(target)
