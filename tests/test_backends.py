# SPDX-License-Identifier: Apache-2.0
"""Models are recognised without importing a framework, and calls reach their backend."""

import sys
import types

import pytest

import nncf
from nncf import backends
from nncf.errors import MissingDependency, ModelError


@pytest.fixture
def fake_torch(monkeypatch):
    """Pretend that a framework with PyTorch's class names, and our backend, are imported."""
    home = types.ModuleType("torch.nn.modules.module")

    class Module:
        pass

    Module.__module__, Module.__qualname__ = home.__name__, "Module"
    home.Module = Module
    monkeypatch.setitem(sys.modules, home.__name__, home)
    calls = []
    backend = types.ModuleType("nncf.torch")
    for name in ("create_compressed_model", "load_state", "strip", "register_module"):

        def record(*args, _name=name, **kwargs):
            calls.append((_name, args, kwargs))
            return _name

        setattr(backend, name, record)
    monkeypatch.setitem(sys.modules, "nncf.torch", backend)
    return Module, calls


def test_a_model_is_known_by_its_classes(fake_torch):
    """Subclasses of the framework's model class belong to it."""
    module, _ = fake_torch
    model = type("Net", (module,), {})()
    assert backends.backend_of(model) == "torch"


def test_calls_are_forwarded_with_all_arguments(fake_torch):
    """The front door passes everything on to the backend of the model."""
    module, calls = fake_torch
    model = module()
    nncf.create_compressed_model(model, "config", dump_graphs=False)
    nncf.load_state(model, {"a": 1}, is_resume=True)
    nncf.strip(model, do_copy=False)
    nncf.register_module(ignored_algorithms=["x"])
    assert calls == [
        ("create_compressed_model", (model, "config", None), {"dump_graphs": False}),
        ("load_state", (model, {"a": 1}), {"is_resume": True}),
        ("strip", (model,), {"do_copy": False}),
        ("register_module", (), {"ignored_algorithms": ["x"]}),
    ]


@pytest.mark.parametrize(
    ("thing", "part"),
    [
        (3, "found an object of class builtins.int"),
        (dict, "found the class dict itself; pass an instance"),
        ((1, 2), "returns a pair: (controller, model)"),
    ],
)
def test_what_is_no_model_is_refused(thing, part):
    """Anything else is refused with what was found."""
    with pytest.raises(ModelError) as caught:
        backends.backend_of(thing)
    assert part in str(caught.value)


def test_a_namesake_is_no_model(fake_torch):
    """A class that only has the right name is not taken for the framework's."""
    other = type("Module", (), {"__module__": "torch.nn.modules.module"})
    with pytest.raises(ModelError):
        backends.backend_of(other())


def test_missing_packages_are_named(monkeypatch):
    """A missing framework is named with the extra that installs it."""

    def fail(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(backends.importlib, "import_module", fail)
    with pytest.raises(MissingDependency, match=r"pip install torch\..*'\.\[torch\]'"):
        nncf.register_module()


def test_a_backend_that_is_not_there_is_explained(monkeypatch):
    """A model of a framework that this release has no backend for is refused in words."""

    def fail(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(backends.importlib, "import_module", fail)
    with pytest.raises(ModelError, match="no backend for tensorflow models"):
        backends.backend_module("tensorflow")
