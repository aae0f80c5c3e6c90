# SPDX-License-Identifier: Apache-2.0
"""Without Keras 3 on TensorFlow the error says what to install or to set."""

import subprocess
import sys

import keras
import pytest

from nncf.errors import ModelError
from nncf.tensorflow.environment import check_keras

CASES = {
    "no keras": ("import sys; sys.modules['keras'] = None", ".[tf]"),
    "no tensorflow": ("import sys; sys.modules['tensorflow'] = None", ".[tf]"),
    "keras 2": (
        (
            "import sys, types; k = types.ModuleType('keras'); k.__version__ = '2.15.0';"
            "sys.modules['keras'] = k"
        ),
        r"keras>=3",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_named(case):
    """The message of the exception is what a user needs to go on."""
    before, expected = CASES[case]
    code = f"{before}\nimport nncf.tensorflow"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert expected in done.stderr.splitlines()[-1], done.stderr[-2000:]


def test_another_backend_of_keras(monkeypatch):
    """Keras on another backend is refused with what to set."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelError, match="KERAS_BACKEND=tensorflow"):
        check_keras()


def test_the_front_door_imports_no_framework():
    """Importing nncf loads neither Keras nor TensorFlow nor PyTorch."""
    code = "import sys, nncf; print(sorted({'keras', 'tensorflow', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
