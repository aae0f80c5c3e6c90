# SPDX-License-Identifier: Apache-2.0
"""The TensorFlow block of the specification runs, and what it saves comes back to the bit.

The block is a sketch: ``...`` stands for something of the user's, its middle is indented, and
``CheckpointManager`` is called without the number of files to keep, which TensorFlow demands. The
test fills in these, and nothing else.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import tensorflow as tf

from nncf.tensorflow import create_compressed_model
from nncf.tensorflow.callbacks.checkpoint_callback import CheckpointManagerCallback
from nncf.tensorflow.utils.state import TFCompressionState, TFCompressionStateLoader
from tests.tensorflow_models import IMAGES, LABELS, compiled, configuration, convnet

BLOCK = Path(__file__).parent / "specification" / "saving_tensorflow.py.txt"
FILLINGS = {
    "path_to_checkpoint)\n": "path_to_checkpoint, max_to_keep=None)\n",
    "compress_model.fit(..., ": "compress_model.fit(images, labels, verbose=0, ",
    "    ...\n": "",
    ",\n                                 ...)": ")",
}


def halves() -> tuple[str, str]:
    """Return the part that saves and the part that loads, filled in."""
    save, load = BLOCK.read_text(encoding="utf-8").split("# load part\n")
    head, middle = save.split("# save checkpoint in a preferable way\n")
    save = head + textwrap.dedent(middle)
    for sketch, filling in FILLINGS.items():
        save = save.replace(sketch if not sketch.startswith("    .") else "...\n", filling)
    return save, load.replace(",\n                                 ...)", ")")


def test_saving_and_loading(tmp_path: Path) -> None:
    """Weights, ranges and schedule of a model that fit has trained come back in a new model."""
    save, load = halves()
    space = {
        "tf": tf,
        "create_compressed_model": create_compressed_model,
        "TFCompressionState": TFCompressionState,
        "TFCompressionStateLoader": TFCompressionStateLoader,
        "CheckpointManagerCallback": CheckpointManagerCallback,
        "nncf_config": configuration("magnitude_sparsity", "quantization"),
    }
    saved = {
        **space,
        "model": compiled(convnet()),
        "path_to_checkpoint": str(tmp_path / "manager"),
        "ckpt_dir": str(tmp_path / "callback"),
        "images": IMAGES,
        "labels": LABELS,
    }
    exec(save, saved)
    path = tf.train.latest_checkpoint(tmp_path / "callback")
    loaded = {**space, "model": convnet(), "path_to_checkpoint": path}
    exec(load, loaded)
    models = [part["compress_model"] for part in (saved, loaded)]
    np.testing.assert_array_equal(*(model(IMAGES, training=False) for model in models))
    states = [part["compression_ctrl"].get_compression_state() for part in (saved, loaded)]
    assert states[0]["ctrl_state"] == states[1]["ctrl_state"]
