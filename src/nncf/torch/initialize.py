# SPDX-License-Identifier: Apache-2.0
"""What happens to a compressed model before training: ranges from data, batch norms refreshed.

Both run the model over a data loader and leave everything else as it was: training flags,
other buffers, random streams, the device, and after a failure the model altogether.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nncf.compression.calibration import Calibration
from nncf.errors import DataError
from nncf.torch.calibration import CalibrationBatch, calibration_batches, evaluating, run
from nncf.torch.calibration import progress as progress
from nncf.torch.counting import zero_counts as zero_counts
from nncf.torch.curvature import TraceWish as TraceWish
from nncf.torch.curvature import average_traces as average_traces
from nncf.torch.curvature import load_numbers as load_numbers
from nncf.torch.curvature import rounding_errors as rounding_errors
from nncf.torch.data import forward_arguments as forward_arguments
from nncf.torch.distributed import agree as agree
from nncf.torch.distributed import from_main as from_main
from nncf.torch.distributed import is_main_process as is_main_process
from nncf.torch.distributed import together as together
from nncf.torch.intercept import compression_of
from nncf.torch.sensitivity import describe_anew as describe_anew
from nncf.torch.sensitivity import output_changes as output_changes
from nncf.torch.sensitivity import recall as recall
from nncf.torch.sensitivity import remember as remember
from nncf.torch.statistics import RangeCollector
from nncf.torch.structure import tensors_in
from nncf.torch.teacher import make_teacher as make_teacher
from nncf.torch.teaching import example_pairs as example_pairs
from nncf.torch.teaching import fewest_bits as fewest_bits
from nncf.torch.teaching import teach as teach
from nncf.torch.trials import only_ops as only_ops
from nncf.torch.trials import trial as trial

_LOGGER = logging.getLogger("nncf")

_VALUES_KEPT_IN_ALL = 2**27
_VALUES_KEPT = (2**16, 2**22)


def parameter(model: nn.Module, name: str) -> torch.Tensor:
    """Return the tensor that a Parameter names."""
    return model.get_parameter(name)


def initialize_ranges(
    model: nn.Module,
    quantizers: Mapping[str, Any],
    wishes: Mapping[str, Calibration],
    loader: Iterable[Any] | None = None,
    device: Any = None,
    *,
    parameters: Mapping[str, Sequence[str]] | None = None,
) -> tuple[str, ...]:
    """Set the range of every quantizer that wishes for one; return the names of those unseen.

    A quantizer is a module with ``set_range(minimum, maximum)``, ``observer`` (while it is set,
    inputs go to it and pass unchanged), ``initialized`` and ``enabled``.
    The model runs over as many batches as the wishes need, all wishing quantizers passing
    values unchanged. Weights of which ``parameters`` gives the names (those that stand in the
    model as they are used) need no data. Quantizers that no value reached are switched off and
    reported. Without a loader activations keep their default range, with a warning.

    Raises DataError when a required wish has no loader, when the data does not fit the model,
    or when NaN or infinity passes; the quantizers are then as they were.
    """
    wanted = {n: wish for n, wish in wishes.items() if n in quantizers and wish.samples > 0}
    collectors = _collectors(wanted)
    activations = [name for name, wish in wanted.items() if not wish.weight]
    direct = {name: parameters[name] for name in wanted if parameters and name in parameters}
    if loader is None:
        _refuse_missing_loader(activations, wanted)
    with _all_or_nothing([quantizers[name] for name in collectors]), together():
        if loader is not None and (activations or len(direct) < len(wanted)):
            _observe(model, quantizers, collectors, loader, device)
        for name, paths in direct.items():
            if collectors[name].result() is None:
                _read_weights(model, name, paths, collectors[name])
        return _set_ranges(quantizers, collectors, skip=activations if loader is None else ())


def _collectors(wanted: Mapping[str, Calibration]) -> dict[str, RangeCollector]:
    keeping = sum(wish.recipe.per == "all" for wish in wanted.values())
    fewest, most = _VALUES_KEPT
    capacity = min(most, max(fewest, _VALUES_KEPT_IN_ALL // max(keeping, 1)))
    return {name: RangeCollector(wish, capacity=capacity) for name, wish in wanted.items()}


def _refuse_missing_loader(activations: list[str], wanted: Mapping[str, Calibration]) -> None:
    required = [name for name in activations if wanted[name].required]
    if required:
        raise DataError(
            "initializer.range: the configuration asks for range initialization, but no data "
            f"loader is registered, which {len(required)} quantizers need (the first is "
            f"{required[0]}). Call nncf.register_default_init_args(nncf_config, train_loader) "
            'before create_compressed_model, or set "num_init_samples": 0.'
        )
    if activations:
        _LOGGER.warning(
            "No data loader is registered: the ranges of %d activation quantizers stay at their "
            "defaults, which fit no data. Call nncf.register_default_init_args(nncf_config, "
            "train_loader) before create_compressed_model, or load a checkpoint.",
            len(activations),
        )


def _observe(
    model: nn.Module,
    quantizers: Mapping[str, Any],
    collectors: Mapping[str, RangeCollector],
    loader: Iterable[Any],
    device: Any,
) -> None:
    """Run the model and let the collectors see what passes their quantizers."""
    bad: list[str] = []
    watched = {**_others(model), **quantizers}
    before = {name: quantizer.observer for name, quantizer in watched.items()}
    needed = [c.calibration.samples for c in collectors.values() if not c.calibration.weight]
    try:
        for name, quantizer in watched.items():
            if name in collectors:
                quantizer.observer = _observer(name, collectors[name], bad)
            elif not quantizer.initialized:  # its range fits nothing and would spoil what follows
                quantizer.observer = _look_away
        with evaluating(model, loader=loader, device=device):
            batches = calibration_batches(
                loader, max(needed, default=1), model, device=device, description="Ranges"
            )
            for batch in batches:
                for collector in collectors.values():
                    collector.start(batch.samples)
                run(model, batch)
                if bad:
                    raise DataError(_not_finite(bad[0], batch))
    finally:
        for name, observer in before.items():
            watched[name].observer = observer


def _others(model: nn.Module) -> dict[str, Any]:
    """Return what can look away of the model's CompressionOps, those of other algorithms too."""
    compression = compression_of(model)
    ops = {} if compression is None else compression.ops
    return {name: op for name, op in ops.items() if hasattr(op, "observer")}


def _observer(name: str, collector: RangeCollector, bad: list[str]) -> Any:
    def observe(tensor: Tensor) -> None:
        collector(tensor)
        if not collector.finite:
            bad.append(name)

    return observe


def _look_away(_tensor: Tensor) -> None:
    """Observe nothing."""


def _not_finite(name: str, batch: CalibrationBatch) -> str:
    floats = [t for t in tensors_in((batch.args, batch.kwargs)) if t.is_floating_point()]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in floats):
        return (
            f"Batch {batch.index} of the calibration data holds NaN or infinity; it reached {name}. "
            "Expected finite numbers: clean the data that the loader yields."
        )
    return (
        f"From batch {batch.index} of the calibration data, which is finite, the model computes NaN "
        f"or infinity at {name}. Expected finite values: check the model in floating point, or add "
        "that operation to ignored_scopes."
    )


def _read_weights(
    model: nn.Module, name: str, paths: Sequence[str], collector: RangeCollector
) -> None:
    for path in paths:
        collector(model.get_parameter(path).detach())
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
def _all_or_nothing(quantizers: Sequence[Any]) -> Iterator[None]:
    """When the block fails, put back the values and flags of the quantizers."""
    flags = [(quantizer, quantizer.initialized, quantizer.enabled) for quantizer in quantizers]
    tensors = [
        t for quantizer in quantizers for t in (*quantizer.parameters(), *quantizer.buffers())
    ]
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for quantizer, initialized, enabled in flags:
            quantizer.initialized, quantizer.enabled = initialized, enabled
        raise


# ----------------------------------------------------------------------------- batch norms


def adapt_batch_norm(
    model: nn.Module, loader: Iterable[Any], samples: int, device: Any = None
) -> None:
    """Refresh the running statistics of batch norms with the compressed model's activations.

    The model runs over ``samples`` samples in evaluation mode but for its batch norms, which
    follow with their own momentum. A model without any is not run. Raises DataError when the
    data does not fit the model or makes a statistic NaN; the statistics are then as before.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    }
    if not norms or samples <= 0:
        return
    with evaluating(model, loader=loader, device=device, keep=norms.values()), together():
        for norm in norms.values():
            norm.training = True
        batches = calibration_batches(
            loader, samples, model, device=device, description="Batch norms"
        )
        for batch in batches:
            if not _follow(model, batch):
                break
            _check_norms(norms, batch)


def _follow(model: nn.Module, batch: CalibrationBatch) -> bool:
    """Run one batch; return False when it is a last batch too small for a variance."""
    try:
        run(model, batch)
    except DataError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        if batch.index > 0:
            _LOGGER.info("A last batch of one sample is left out of batch norm adaptation.")
            return False
        raise DataError(
            "Batch norm adaptation needs batches of at least two samples: a layer got one value "
            "per channel, which has no variance. Register a loader with a larger batch size, or "
            'set "num_bn_adaptation_samples": 0.'
        ) from error
    return True


def _check_norms(norms: Mapping[str, Any], batch: CalibrationBatch) -> None:
    for name, norm in norms.items():
        if not (torch.isfinite(norm.running_mean).all() and torch.isfinite(norm.running_var).all()):
            raise DataError(
                f"Batch {batch.index} of the calibration data makes the statistics of batch norm "
                f'"{name}" NaN or infinite. Expected finite numbers: clean the data that the loader '
                "yields, or check the model on it in floating point."
            )
