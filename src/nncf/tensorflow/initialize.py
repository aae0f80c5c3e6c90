# SPDX-License-Identifier: Apache-2.0
"""What happens to a compressed model before training: ranges from data, batch norms refreshed.

Both run the model over a data set and leave everything else as it was, after a failure the model
altogether.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import tree

from nncf.algorithms.tensorflow.compression_layer import CompressionLayer
from nncf.compression.calibration import Calibration
from nncf.errors import ConfigError, DataError
from nncf.tensorflow.calibration import CalibrationBatch, calibration_batches, run
from nncf.tensorflow.records import record_of
from nncf.tensorflow.statistics import RangeCollector
from nncf.tensorflow.teaching import example_pairs as example_pairs
from nncf.tensorflow.teaching import fewest_bits as fewest_bits
from nncf.tensorflow.teaching import make_teacher as make_teacher
from nncf.tensorflow.teaching import teach as teach

_LOGGER = logging.getLogger("nncf")

_VALUES_KEPT_IN_ALL = 2**27
_VALUES_KEPT = (2**16, 2**22)


def is_main_process() -> bool:
    """Tell whether this process speaks for all; Keras' strategies have one process per machine."""
    return True


def agree(model: Any) -> None:
    """Make all replicas equal: they share their variables already."""


def parameter(model: Any, name: str) -> Any:
    """Return the values of a variable by name, in the shape in which ops see them."""
    return record_of(model).parameter(name)


def zero_counts(model: Any) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return ``{name: (shape, number of zeros)}`` of the parameters of the user's layers.

    Moving averages and other state that no gradient reaches do not count, frozen weights do.
    """
    record = record_of(model)
    found = {}
    for name in record.parameter_names:
        values = record.parameter(name)
        found[name] = (values.shape, values.size - int(np.count_nonzero(values)))
    return found


def initialize_ranges(  # the same for every backend
    model: Any,
    quantizers: Mapping[str, Any],
    wishes: Mapping[str, Calibration],
    loader: Iterable[Any] | None = None,
    device: Any = None,
    *,
    parameters: Mapping[str, Sequence[str]] | None = None,
) -> tuple[str, ...]:
    """Set the range of every quantizer that wishes for one; return the names of those unseen.

    As ``nncf.torch.initialize.initialize_ranges``. Raises DataError when a required wish has no
    loader, when the data does not fit the model, or when NaN or infinity passes, ConfigError for
    a ``device``: placement is TensorFlow's; the quantizers are then as they were.
    """
    _refuse_device(device)
    wanted = {n: wish for n, wish in wishes.items() if n in quantizers and wish.samples > 0}
    collectors = _collectors(wanted)
    activations = [name for name, wish in wanted.items() if not wish.weight]
    direct = {name: parameters[name] for name in wanted if parameters and name in parameters}
    if loader is None:
        _refuse_missing_loader(activations, wanted)
    with _all_or_nothing([quantizers[name] for name in collectors]):
        if loader is not None and (activations or len(direct) < len(wanted)):
            _observe(model, quantizers, collectors, loader)
        for name in direct:
            if collectors[name].result() is None:
                _read_weights(model, name, collectors[name])
        return _set_ranges(quantizers, collectors, skip=activations if loader is None else ())


def _refuse_device(device: Any) -> None:
    if device is not None:
        raise ConfigError(
            "register_default_init_args: device is for PyTorch models. TensorFlow places a Keras "
            "model itself; call create_compressed_model in the scope of a tf.device to choose."
        )


def _collectors(wanted: Mapping[str, Calibration]) -> dict[str, RangeCollector]:
    keeping = sum(wish.recipe.per == "all" for wish in wanted.values())
    fewest, most = _VALUES_KEPT
    capacity = min(most, max(fewest, _VALUES_KEPT_IN_ALL // max(keeping, 1)))
    return {name: RangeCollector(wish, capacity=capacity) for name, wish in wanted.items()}


def _refuse_missing_loader(activations: list[str], wanted: Mapping[str, Calibration]) -> None:
    required = [name for name in activations if wanted[name].required]
    if required:
        raise DataError(
            "initializer.range: the configuration asks for range initialization, but no data set "
            f"is registered, which {len(required)} quantizers need (the first is {required[0]}). "
            "Call nncf.register_default_init_args(nncf_config, dataset, batch_size) before "
            'create_compressed_model, or set "num_init_samples": 0.'
        )
    if activations:
        _LOGGER.warning(
            "No data set is registered: the ranges of %d activation quantizers stay at their "
            "defaults, which fit no data. Call nncf.register_default_init_args(nncf_config, "
            "dataset, batch_size) before create_compressed_model, or load a checkpoint.",
            len(activations),
        )


def _observe(
    model: Any,
    quantizers: Mapping[str, Any],
    collectors: Mapping[str, RangeCollector],
    loader: Iterable[Any],
) -> None:
    """Run the model and let the collectors see what passes their quantizers."""
    bad: list[str] = []
    watched = {**record_of(model).ops, **quantizers}
    before = {name: op.observer for name, op in watched.items()}
    needed = [c.calibration.samples for c in collectors.values() if not c.calibration.weight]
    try:
        for name, op in watched.items():
            if name in collectors:
                op.observer = _observer(name, collectors[name], bad)
            elif not getattr(op, "initialized", True):  # its range would spoil what follows
                op.observer = _look_away
        batches = calibration_batches(loader, max(needed, default=1), model, description="Ranges")
        for batch in batches:
            for collector in collectors.values():
                collector.start(batch.samples)
            run(model, batch)
            if bad:
                raise DataError(_not_finite(bad[0], batch))
    finally:
        for name, observer in before.items():
            watched[name].observer = observer


def _observer(name: str, collector: RangeCollector, bad: list[str]) -> Any:
    def observe(tensor: Any) -> None:
        collector(tensor)
        if not collector.finite:
            bad.append(name)

    return observe


def _look_away(_tensor: Any) -> None:
    """Observe nothing."""


def _not_finite(name: str, batch: CalibrationBatch) -> str:
    arrays = [np.asarray(x) for x in tree.flatten(batch.inputs)]
    if not all(np.isfinite(x).all() for x in arrays if x.dtype.kind == "f"):
        return (
            f"Batch {batch.index} of the calibration data holds NaN or infinity; it reached {name}. "
            "Expected finite numbers: clean the data that the data set yields."
        )
    return (
        f"From batch {batch.index} of the calibration data, which is finite, the model computes NaN "
        f"or infinity at {name}. Expected finite values: check the model in floating point, or add "
        "that operation to ignored_scopes."
    )


def _read_weights(model: Any, name: str, collector: RangeCollector) -> None:
    for path, value in record_of(model).weights_of(name):
        collector(value)
        if not collector.finite:
            raise DataError(
                f"The weight {path} at {name} holds NaN or infinity. Expected finite numbers: load "
                "a sound checkpoint before compressing."
            )


def _set_ranges(
    quantizers: Mapping[str, Any], collectors: Mapping[str, RangeCollector], skip: Sequence[str]
) -> tuple[str, ...]:
    unseen = []
    for name, collector in collectors.items():
        if name in skip:
            continue
        found = collector.result()
        if found is None:
            unseen.append(name)
            quantizers[name].enabled = False
            continue
        try:
            quantizers[name].set_range(*found)
        except ValueError as error:
            raise DataError(f"{name}: its range cannot be set. {error}") from error
    if unseen:
        _LOGGER.error(
            "No value reached these quantizers while ranges were initialised, so they are switched "
            "off and what passes them stays in floating point: %s. Does the calibration data take "
            "the same branches of the model as training does?",
            ", ".join(unseen),
        )
    return tuple(unseen)


@contextmanager
def _all_or_nothing(quantizers: Sequence[CompressionLayer]) -> Iterator[None]:
    """When the block fails, put back the values and flags of the quantizers."""
    flags = [(quantizer, quantizer.initialized) for quantizer in quantizers]
    values = [(v, v.numpy()) for quantizer in quantizers for v in quantizer.variables]
    try:
        yield
    except BaseException:
        for variable, value in values:
            variable.assign(value)
        for quantizer, initialized in flags:
            quantizer.initialized = initialized
        raise


# ----------------------------------------------------------------------------- batch norms


def adapt_batch_norm(model: Any, loader: Iterable[Any], samples: int, device: Any = None) -> None:
    """Refresh the moving statistics of batch norms with the compressed model's activations.

    The model runs over ``samples`` samples in evaluation but for its batch norms, frozen ones
    too, which follow with their own momentum. A model without any is not run. Raises DataError
    when the data does not fit the model or makes a statistic NaN; the statistics are then as
    before.
    """
    _refuse_device(device)
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not norms or samples <= 0:
        return
    before = [(v, v.numpy()) for norm in norms for v in norm.non_trainable_variables]
    batches = calibration_batches(loader, samples, model, description="Batch norms")
    try:
        with _following(norms):
            for batch in batches:
                run(model, batch)
                _check_norms(norms, batch)
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise


@contextmanager
def _following(norms: Sequence[Any]) -> Iterator[None]:
    """Inside, the batch norms run as in training, also those that are frozen."""
    trainable = [norm.trainable for norm in norms]
    for norm in norms:
        called = norm.call

        def in_training(
            x: Any, training: Any = None, mask: Any = None, called: Any = called
        ) -> Any:
            del training
            return called(x, training=True, mask=mask)

        norm.trainable = True
        object.__setattr__(norm, "call", in_training)
    try:
        yield
    finally:
        for norm, flag in zip(norms, trainable, strict=True):
            object.__delattr__(norm, "call")
            norm.trainable = flag


def _check_norms(norms: Sequence[Any], batch: CalibrationBatch) -> None:
    for norm in norms:
        if not all(np.isfinite(v.numpy()).all() for v in (norm.moving_mean, norm.moving_variance)):
            raise DataError(
                f"Batch {batch.index} of the calibration data makes the statistics of batch norm "
                f'"{norm.name}" NaN or infinite. Expected finite numbers: clean the data that the '
                "data set yields, or check the model on it in floating point."
            )
