# SPDX-License-Identifier: Apache-2.0
"""``tf.distribute.MirroredStrategy`` on two logical processors."""

import json
import subprocess
import sys

import numpy as np


def test_two_replicas_train_as_one(root):
    """Two replicas give the weights of one, by fit and in a loop, go on after a stop, and train all."""
    command = [sys.executable, "-m", "tests.tensorflow.mirrored"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["replicas"] == 2
    assert found["one against two"] < 1e-6
    assert found["a loop of one's own"] < 1e-6
    assert found["accuracy-aware, stopped"] == 0
    assert found["between replicas"] == 0
    assert found["stripped"] == 0
    assert np.isfinite([found["everything"], found["everything in a loop"]]).all()
