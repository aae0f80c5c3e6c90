# SPDX-License-Identifier: Apache-2.0
"""Batch norm adaptation as the other algorithms call it."""

from __future__ import annotations

import logging

from nncf.algorithms.batchnorm_adaptation.options import BatchnormAdaptationOptions
from nncf.compression.algorithm import Compressed
from nncf.config.structures import BNAdaptationInitArgs
from nncf.errors import DataError

_LOGGER = logging.getLogger("nncf")


def adapt(compressed: Compressed, section: BatchnormAdaptationOptions, *, explicit: bool) -> None:
    """Refresh the batch norm statistics of the model with the registered data.

    Without data nothing happens, unless the adaptation was asked for (``explicit``).
    Raises DataError when data that was asked for is missing or unusable.
    """
    samples = section.num_bn_adaptation_samples
    if samples == 0:
        return
    if not compressed.config.has_extra_struct(BNAdaptationInitArgs):
        if explicit:
            raise DataError(
                "initializer.batchnorm_adaptation asks for data, but no data loader is registered. "
                "Call nncf.register_default_init_args(nncf_config, train_loader) first, or set "
                "num_bn_adaptation_samples to 0."
            )
        _LOGGER.info("Batch norm adaptation is skipped: no data loader is registered")
        return
    found = compressed.config.get_extra_struct(BNAdaptationInitArgs)
    compressed.backend.adapt_batch_norm(compressed.model, found.data_loader, samples, found.device)
