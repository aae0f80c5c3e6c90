# SPDX-License-Identifier: Apache-2.0
"""``controller.export_model`` for Keras models: write a file, run it, keep it if it is equal.

The file is written under a temporary name, run in its runtime on samples, compared with the
trained model (``nncf.compression.parity``) and renamed only when all of it agrees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree
from numpy.typing import NDArray

from nncf.compression.parity import DEFAULT_TOLERANCE, ParityReport, Tolerance, compare
from nncf.config import NNCFConfig
from nncf.errors import ExportError
from nncf.tensorflow.calibration import calibration_batches
from nncf.tensorflow.export_form import ExportForm
from nncf.tensorflow.export_formats import Format, checked_format, put_in_place, temporary_folder
from nncf.tensorflow.inputs import registered_loader
from nncf.tensorflow.litert_outputs import SAMPLES
from nncf.tensorflow.written import Written, write

Array = NDArray[Any]

_COMPARED = 16
"""Samples on which the outputs of the file are compared with the trained model's."""

_OPEN_SIZE = 32
"""The size that samples which are made up have along an open axis, but the batch."""


def export_model(  # noqa: PLR0913  # the documented signature
    model: Any,
    config: NNCFConfig,
    path: str | Path,
    *,
    save_format: str | None = None,
    tolerance: Tolerance | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ParityReport:
    """Write the deployed file of a compressed model and return how it compares with the model.

    The file is compared on up to 16 samples: the first of the registered data set, or made from
    the shapes of the inputs. ``tolerance`` replaces the default of ``nncf.compression.parity``.
    The model stays as it is.

    ``save_format``, by default from the ending of ``path``: "saved_model" or "tf" (a folder; the
    default without an ending), "tflite" or "litert" (``.tflite``; one sample at a time), "onnx",
    "onnx_<opset>" or "onnx_int8" (``.onnx``; the last does not pack weights of 4 bits and fewer),
    "openvino" (``.xml``) or "keras" (``.keras``). ``input_names`` and
    ``output_names`` name inputs and outputs of ONNX, OpenVINO and LiteRT files, by default as the
    Keras model does.

    Raises UnsupportedFormat, MissingDependency, ExportError (the path cannot be written, or the
    converter or the runtime refuses the model) and ParityError (the file computes something else);
    nothing is then left at ``path``.
    """
    path = Path(path)
    chosen = checked_format(path, save_format)
    form = _named(ExportForm.of(model), chosen, input_names, output_names)
    samples = _samples(model, config)
    with temporary_folder(path, chosen) as folder:
        written = write(form, chosen, folder / path.name, _batches(model, config))
        report = _verify(model, written, samples, tolerance or DEFAULT_TOLERANCE)
        report.check(path)
        report = dataclasses.replace(report, sizes=written.sizes())
        put_in_place(folder, path)
    return report


def check_export(path: str | Path, save_format: str | None = None) -> None:
    """Raise what ``export_model`` raises about the form of the file and its place."""
    path = Path(path)
    chosen = checked_format(path, save_format)
    with temporary_folder(path, chosen):
        pass


def _named(
    form: ExportForm,
    chosen: Format,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
) -> ExportForm:
    if inputs is None and outputs is None:
        return form
    if not chosen.has_names:
        raise ExportError(
            f"input_names, output_names: a {chosen.kind} file has the names of the Keras model. "
            "Name the Input and the last layers of the model, and leave these options out."
        )
    for kind, own, given in (("inputs", form.inputs, inputs), ("outputs", form.outputs, outputs)):
        if given is not None and (len(given) != len(own) or len(set(given)) != len(given)):
            raise ExportError(
                f"{len(given)} names were given for {kind}: {list(given)}; the model has "
                f"{len(own)} {kind}. Expected: one name for each, all different."
            )
    return dataclasses.replace(
        form, inputs=tuple(inputs or form.inputs), outputs=tuple(outputs or form.outputs)
    )


# ------------------------------------------------------------------------------------ comparison


def _verify(
    model: Any, written: Written, samples: list[Array], tolerance: Tolerance
) -> ParityReport:
    """Run the trained model and the file on the samples and compare their outputs."""
    given = tree.pack_sequence_as(model._inputs_struct, [tf.constant(x) for x in samples])
    trained = [np.asarray(x) for x in tree.flatten(model(given, training=False))]
    deployed = written.run(samples)
    outputs = tuple(
        compare(name, a, np.asarray(b))
        for name, a, b in zip(written.outputs, trained, deployed, strict=True)
    )
    return ParityReport(written.runtime, outputs, tolerance=tolerance)


def _samples(model: Any, config: NNCFConfig) -> list[Array]:
    """Return the flat inputs of up to 16 samples."""
    loader = registered_loader(config)
    if loader is None:
        return [_made_up(tensor) for tensor in model.inputs]
    batches = [
        [np.asarray(x) for x in tree.flatten(batch.inputs)]
        for batch in calibration_batches(loader, _COMPARED, model, description="Export")
    ]
    joined = [np.concatenate(parts)[:_COMPARED] for parts in zip(*batches, strict=True)]
    fixed = {tensor.shape[0] for tensor in model.inputs} - {None}
    count = min(len(joined[0]), *fixed, _COMPARED)
    return [x[:count].astype(tensor.dtype) for x, tensor in zip(joined, model.inputs, strict=True)]


def _batches(model: Any, config: NNCFConfig) -> Iterator[Any] | None:
    """Return batches of inputs from the registered data set, None without one."""
    loader = registered_loader(config)
    if loader is None:
        return None
    found = calibration_batches(loader, SAMPLES, model, description="Export")
    return (tree.map_structure(tf.convert_to_tensor, batch.inputs) for batch in found)


def _made_up(tensor: Any) -> Array:
    generator = np.random.default_rng(0)
    count = tensor.shape[0] or _COMPARED
    shape = (count, *(_OPEN_SIZE if size is None else size for size in tensor.shape[1:]))
    if "float" in tensor.dtype:
        return generator.uniform(-1, 1, shape).astype(tensor.dtype)
    return generator.integers(0, 2, shape).astype(tensor.dtype)
