# SPDX-License-Identifier: Apache-2.0
"""What a model's inputs look like: from the model itself, ``input_info``, or the data set."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import tree

from nncf.config import NNCFConfig
from nncf.config.structures import BNAdaptationInitArgs, QuantizationRangeInitArgs
from nncf.errors import ConfigError, ModelError
from nncf.tensorflow.calibration import same_random_streams

_DTYPES = {"float": "float32", "long": "int64"}


def symbolic_inputs(model: Any, config: NNCFConfig) -> Any:
    """Return symbolic tensors for a model's ``call``, in the structure that it takes.

    A functional model knows its inputs. For any other, ``input_info`` tells, or the first batch
    of the registered data set, or how the model was built. Sizes of the batch stay open. Raises
    ModelError for a model that was never built where nothing tells, ConfigError when
    ``input_info`` contradicts the model.
    """
    infos = config.options.input_info
    if isinstance(model, keras.src.models.functional.Functional):
        found = tree.map_structure(_like, model._inputs_struct)
        _check(infos, tree.flatten(found))
        return found
    if isinstance(model, keras.Sequential) and model.inputs:
        _check(infos, model.inputs)
        return _like(model.inputs[0])
    if infos:
        tensors = [
            keras.KerasTensor((None, *info.sample_size[1:]), dtype=_DTYPES[info.type])
            for info in infos
        ]
        keywords = [info.keyword for info in infos]
        if all(keywords):
            return dict(zip(map(str, keywords), tensors, strict=True))
        return tensors[0] if len(tensors) == 1 else tensors
    loader = registered_loader(config)
    if loader is not None:
        return _from_data(loader)
    return _from_build(model)


def example_outputs(model: Any, inputs: Any) -> Any:
    """Return what a model makes of one sample of zeros like ``inputs``, symbolic tensors.

    None where another size than that of the batch is open.
    """
    if any(size is None for tensor in tree.flatten(inputs) for size in tensor.shape[1:]):
        return None
    zeros = tree.map_structure(
        lambda tensor: tf.zeros((tensor.shape[0] or 1, *tensor.shape[1:]), tensor.dtype), inputs
    )
    return model(zeros, training=False)


def _like(tensor: Any) -> Any:
    return keras.KerasTensor(tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse)


def _check(infos: Any, tensors: Any) -> None:
    """Compare ``input_info`` with the inputs of a model that knows them."""
    if not infos:
        return
    if len(infos) != len(tensors):
        raise ConfigError(
            f"input_info: {len(infos)} inputs are described and the model has {len(tensors)}. A "
            "Keras model knows its inputs: remove input_info."
        )
    for number, (info, tensor) in enumerate(zip(infos, tensors, strict=True)):
        said, known = tuple(info.sample_size), tuple(tensor.shape)
        fits = len(said) == len(known) and all(
            b in (None, a) for a, b in zip(said[1:], known[1:], strict=True)
        )
        if not fits:
            raise ConfigError(
                f"input_info[{number}].sample_size is {list(said)}, and the model's input has the "
                f"shape {known}. A Keras model knows its inputs: correct or remove input_info."
            )


def registered_loader(config: NNCFConfig) -> Any:
    """Return a data set registered in the configuration, or None."""
    for kind in (QuantizationRangeInitArgs, BNAdaptationInitArgs):
        if config.has_extra_struct(kind):
            return config.get_extra_struct(kind).data_loader
    return None


def _from_data(loader: Any) -> Any:
    with same_random_streams():
        batch = next(iter(loader))
    x, _, _ = keras.utils.unpack_x_y_sample_weight(
        tuple(batch) if isinstance(batch, list) else batch
    )
    return tree.map_structure(
        lambda value: keras.KerasTensor((None, *value.shape[1:]), dtype=_dtype_of(value)), x
    )


def _dtype_of(value: Any) -> str:
    name: str = keras.backend.standardize_dtype(value.dtype)
    return "float32" if name == "float64" else name


def _from_build(model: Any) -> Any:
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    found = next(iter(shapes.values()), None)
    if not model.built or found is None:
        raise ModelError(
            f"The model {model.name} ({type(model).__name__}) was never built, so its inputs are "
            "not known. Call it once on a batch, call build(input_shape), or add for example "
            '"input_info": {"sample_size": [1, 224, 224, 3]} to the configuration.'
        )
    return _from_shapes(found)


def _from_shapes(shapes: Any) -> Any:
    if isinstance(shapes, dict):
        return {name: _from_shapes(shape) for name, shape in shapes.items()}
    if shapes and isinstance(shapes[0], (list, tuple)):
        return [_from_shapes(shape) for shape in shapes]
    return keras.KerasTensor((None, *shapes[1:]), dtype=keras.config.floatx())
