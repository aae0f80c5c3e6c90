# SPDX-License-Identifier: Apache-2.0
"""The compression state inside a ``tf.train.Checkpoint``, as a string of JSON."""

from __future__ import annotations

import json
from typing import Any

import tensorflow as tf

from nncf.errors import CheckpointError


class TFCompressionState(tf.train.experimental.PythonState):
    """Saves what ``controller.get_compression_state()`` returns, at the moment of saving.

    ``tf.train.Checkpoint(model=model, compression_state=TFCompressionState(controller))``.
    Restoring such a checkpoint gives the state back to the controller.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    def serialize(self) -> str:
        return json.dumps(self._controller.get_compression_state())

    def deserialize(self, string_value: str) -> None:
        self._controller.load_state(_read(string_value)["ctrl_state"])


class TFCompressionStateLoader(tf.train.experimental.PythonState):
    """Reads the compression state out of a checkpoint, for ``create_compressed_model``.

    ``tf.train.Checkpoint(compression_state=loader).restore(path)``; then ``loader.state`` is the
    state. Raises CheckpointError for a checkpoint without one.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    @property
    def state(self) -> dict[str, Any]:
        if self._state is None:
            raise CheckpointError(
                "No compression state has been restored. Expected a checkpoint that was saved with "
                "compression_state=TFCompressionState(controller), under that name, and "
                "restore(path) to have been called; a wrong path restores nothing without a word."
            )
        return self._state

    def serialize(self) -> str:
        return json.dumps(self.state)

    def deserialize(self, string_value: str) -> None:
        self._state = _read(string_value)


def _read(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"The compression state in the checkpoint is damaged ({error}). Expected what "
            "TFCompressionState of this release wrote."
        ) from error
    return found
