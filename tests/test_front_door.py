# SPDX-License-Identifier: Apache-2.0
"""Importing nncf is quick and silent; every promised name is there."""

import subprocess
import sys

import pytest

import nncf


def python(code):
    """Run ``code`` in a fresh interpreter; return what it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", nncf.__all__)
def test_promised_names(name):
    """Every name of __all__ can be had, and is listed by dir."""
    assert getattr(nncf, name) is not None
    assert name in dir(nncf)


def test_unknown_names():
    """Other names give the usual AttributeError."""
    with pytest.raises(AttributeError, match="module 'nncf' has no attribute 'nothing'"):
        _ = nncf.nothing


def test_import_is_silent_and_loads_nothing_heavy():
    """Importing nncf prints nothing and loads no framework, not even pydantic."""
    heavy = "torch tensorflow keras onnx onnxruntime openvino numpy networkx pydantic rich"
    code = f"import sys, nncf; print([m for m in {heavy.split()} if m in sys.modules])"
    assert python(code) == "[]\n"


def test_a_config_loads_no_framework():
    """Reading a configuration needs no framework either."""
    code = (
        "import sys, nncf; nncf.NNCFConfig.from_dict({'compression': {'algorithm': "
        "'quantization'}}); print([m for m in ('torch', 'keras', 'onnx') if m in sys.modules])"
    )
    assert python(code) == "[]\n"


def test_import_takes_less_than_a_third_of_a_second():
    """Importing nncf takes under 0.3 s, the interpreter's own start not counted."""
    code = "import time; t = time.perf_counter(); import nncf; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.3
