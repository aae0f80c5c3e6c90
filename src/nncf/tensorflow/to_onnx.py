# SPDX-License-Identifier: Apache-2.0
"""A Keras model as ONNX: tf2onnx converts it, ``nncf.onnx.finish`` brings it into shape."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from nncf.errors import ExportError
from nncf.tensorflow.export_form import ExportForm, as_trained

OPSET = 18
"""The newest that tf2onnx writes; weights of 4 bits and fewer raise it."""


def to_onnx(
    form: ExportForm, *, opset: int | None = None, packs: bool = True, for_onnx_runtime: bool = True
) -> bytes:
    """Return the deployed form of a model as the bytes of an ONNX file.

    Batches may have any size. Raises ExportError when the converter refuses the model.
    """
    from nncf.onnx.finish import finish

    form.refuse_sparse_inputs("ONNX")
    converted = _convert(form, opset or OPSET)
    weights = (np.asarray(grid.variable.numpy()) for grid in form.grids)
    return finish(
        converted,
        dict(zip(form.weights, weights, strict=True)),
        for_onnx_runtime=for_onnx_runtime,
        packs=packs,
        raise_opset=opset is None,
        names=(form.inputs, form.outputs),
    )


def _convert(form: ExportForm, opset: int) -> Any:
    import tf2onnx

    handled = ("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel")
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, _ = tf2onnx.convert.from_function(
                form.function(as_trained),
                (*form.signature(None), *_weights(form)),
                opset=opset,
                custom_op_handlers={name: (_write_quantizer, []) for name in handled},
            )
    except ExportError:
        raise
    except Exception as error:  # whatever the converter or the model raises
        first = (str(error).splitlines() or [""])[0]
        raise ExportError(
            f"tf2onnx cannot write {form.model.name} as ONNX with opset {opset}: "
            f"{type(error).__name__}: {first} Expected a model of operations that ONNX has. Write "
            "a SavedModel or a LiteRT file instead, or replace that operation."
        ) from error
    finally:
        logger.setLevel(level)
    return model


def _weights(form: ExportForm) -> tuple[Any, ...]:
    """Return the weights as further inputs.

    As constants they would be quantized before the converter sees their grids.
    """
    return tuple(
        tf.TensorSpec(grid.variable.shape, grid.variable.dtype, name=name)
        for grid, name in zip(form.grids, form.weights, strict=True)
    )


def _write_quantizer(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Write fake quantization as QuantizeLinear and DequantizeLinear of uint8.

    Grids with fewer levels than uint8 clip before: the codes are those of the grid.
    """
    from nncf.onnx.converter_nodes import GridOfNode, write_pair

    del name, arguments
    low, high = (np.asarray(x.get_tensor_value(as_list=False)) for x in node.inputs[1:3])
    low, high = low.astype(np.float32), high.astype(np.float32)
    narrow = bool(node.get_attr_value("narrow_range", False))
    first, last = int(narrow), 2 ** int(node.get_attr_value("num_bits", 8)) - 1
    scale = (high - low) / np.float32(last - first)
    zero = np.clip(np.rint(first - low / scale), first, last)
    grid = GridOfNode(scale, zero.astype(np.uint8), (first, last))
    write_pair(context, node, grid)
