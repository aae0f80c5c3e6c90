# SPDX-License-Identifier: Apache-2.0
"""The loader of earlier releases: a batched ``tf.data.Dataset`` and the size of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class TFInitializingDataLoader:
    """Wraps a data set that yields batches as ``fit`` takes them.

    Today the data set itself does: ``register_default_init_args(config, dataset, batch_size)``.
    """

    def __init__(self, data_loader: Any, batch_size: int) -> None:
        self._data_loader = data_loader
        self._batch_size = batch_size

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def num_workers(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter(self._data_loader)
