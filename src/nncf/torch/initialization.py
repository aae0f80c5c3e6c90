# SPDX-License-Identifier: Apache-2.0
"""The class that loaders of earlier releases derive from. Today ``NNCFDataLoader`` does it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nncf.errors import DataError
from nncf.torch.data import describe


class PTInitializingDataLoader:
    """Wraps a loader and says how forward is called with what it yields.

    Without overriding, batches must be pairs ``(input, target)``.
    """

    def __init__(self, data_loader: Any) -> None:
        self.data_loader = data_loader

    @property
    def batch_size(self) -> int | None:
        """Samples in one batch, as the wrapped loader says."""
        return getattr(self.data_loader, "batch_size", None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data_loader)

    def __len__(self) -> int:
        return len(self.data_loader)

    def get_inputs(self, dataloader_output: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ``(args, kwargs)`` for forward."""
        return (self._pair(dataloader_output)[0],), {}

    def get_target(self, dataloader_output: Any) -> Any:
        """Return what the model is to learn."""
        return self._pair(dataloader_output)[1]

    def _pair(self, output: Any) -> tuple[Any, Any]:
        if not isinstance(output, (tuple, list)) or len(output) != 2:
            raise DataError(
                f"{type(self).__name__} expects pairs (input, target), its loader yields\n"
                f"{describe(output)}\nOverride get_inputs and get_target, or give the loader itself "
                "to register_default_init_args, which understands most batches."
            )
        return output[0], output[1]
