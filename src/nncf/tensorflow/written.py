# SPDX-License-Identifier: Apache-2.0
"""A written file of each format: how it is made, run, and where its bytes go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from numpy.typing import NDArray

from nncf.compression.sizes import Size, SizeTable
from nncf.errors import ExportError
from nncf.tensorflow.export_form import ExportForm
from nncf.tensorflow.export_formats import Format

Array = NDArray[Any]


@dataclass(frozen=True)
class Written:
    """A file that was written: its outputs' names, its runtime's, and what can be asked of it.

    ``run`` takes the flat inputs and returns the flat outputs.
    """

    outputs: tuple[str, ...]
    runtime: str
    run: Callable[[list[Array]], list[Array]]
    sizes: Callable[[], SizeTable]


def write(
    form: ExportForm, chosen: Format, path: Path, batches: Iterable[Any] | None = None
) -> Written:
    """Write a model to ``path``. Raises ExportError when converter or runtime refuse it.

    ``batches`` are inputs that LiteRT takes the ranges of the last results from.
    """
    if chosen.kind == "saved_model":
        return _saved_model(form, path)
    if chosen.kind == "keras":
        return _keras_file(form, path)
    if chosen.kind == "litert":
        return _litert(form, path, batches)
    return _onnx(form, chosen, path)


# ----------------------------------------------------------------------------- TensorFlow, Keras


def _saved_model(form: ExportForm, path: Path) -> Written:
    try:
        form.model.export(str(path), format="tf_saved_model", verbose=False)
    except Exception as error:  # whatever the model's layers raise
        raise ExportError(
            f"Keras cannot write {form.model.name} as a SavedModel: {type(error).__name__}: "
            f"{error}. Expected a model that model.export takes: call that on controller.strip()."
        ) from error

    def run(samples: list[Array]) -> list[Array]:
        loaded = tf.saved_model.load(str(path))  # its function needs it to stay
        return _outputs(loaded.serve(_packed(form, samples)))

    return Written(form.outputs, "TensorFlow", run, lambda: _variables_of(form, path))


def _keras_file(form: ExportForm, path: Path) -> Written:
    def explained(doing: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever the model's layers raise
            raise ExportError(
                f"Keras cannot {doing} {form.model.name} as .keras: "
                f"{type(error).__name__}: {error}. Expected layers with get_config() that are "
                "registered with keras.saving.register_keras_serializable; or write a SavedModel."
            ) from error

    explained("write", lambda: form.model.save(path))

    def run(samples: list[Array]) -> list[Array]:
        load = keras.saving.load_model
        loaded = explained("read", lambda: load(path, compile=False, safe_mode=False))
        return _outputs(loaded(_packed(form, samples), training=False))

    return Written(form.outputs, "Keras", run, lambda: _variables_of(form, path))


def _packed(form: ExportForm, samples: list[Array]) -> Any:
    flat = [tf.constant(x) for x in samples]
    return tree.pack_sequence_as(form.model._inputs_struct, flat)


def _outputs(structure: Any) -> list[Array]:
    return [np.asarray(x) for x in tree.flatten(structure)]


def _variables_of(form: ExportForm, path: Path) -> SizeTable:
    files = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else [path]
    rows = []
    for variable in form.model.variables:
        value = np.asarray(variable.numpy())
        size = value.nbytes
        rows.append(Size(variable.path, value.shape, str(value.dtype), size, size, "dense"))
    total = sum(item.stat().st_size for item in files)
    what = ("graph", "operations, names, shapes")
    return SizeTable(tuple(rows), total - sum(row.packed for row in rows), what)


# ------------------------------------------------------------------------------- other runtimes


def _litert(form: ExportForm, path: Path, batches: Iterable[Any] | None) -> Written:
    from nncf.tensorflow.litert import LiteRTFile, to_litert
    from nncf.tensorflow.litert_sizes import size_table

    path.write_bytes(to_litert(form, batches))
    return Written(
        form.outputs,
        LiteRTFile.runtime,
        lambda samples: _one_by_one(form, LiteRTFile(path), samples),
        lambda: size_table(path),
    )


def _onnx(form: ExportForm, chosen: Format, path: Path) -> Written:
    from nncf.tensorflow.to_onnx import to_onnx

    for_onnx_runtime = chosen.kind == "onnx"
    data = to_onnx(form, opset=chosen.opset, packs=chosen.packs, for_onnx_runtime=for_onnx_runtime)
    if for_onnx_runtime:
        from nncf.onnx.run import OnnxFile
        from nncf.onnx.size import size_table

        path.write_bytes(data)
        return Written(
            form.outputs,
            OnnxFile.runtime,
            lambda samples: _at_once(form, OnnxFile(path), samples),
            lambda: size_table(path),
        )
    from nncf.openvino.run import OpenVINOFile
    from nncf.openvino.size import size_table as ir_size_table
    from nncf.openvino.write import write_ir

    write_ir(data, path)
    return Written(
        form.outputs,
        OpenVINOFile.runtime,
        lambda samples: _at_once(form, OpenVINOFile(path), samples),
        lambda: ir_size_table(path),
    )


def _at_once(
    form: ExportForm,
    file: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    samples: list[Array],
) -> list[Array]:
    found = file(dict(zip(form.inputs, samples, strict=True)))
    return [np.asarray(found[name]) for name in form.outputs]


def _one_by_one(
    form: ExportForm,
    file: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    samples: list[Array],
) -> list[Array]:
    single = [
        _at_once(form, file, [x[index : index + 1] for x in samples])
        for index in range(len(samples[0]))
    ]
    return [np.concatenate(parts) for parts in zip(*single, strict=True)]
