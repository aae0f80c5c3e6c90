# SPDX-License-Identifier: Apache-2.0
"""Which framework a model belongs to, and the calls that go to that framework's backend.

Nothing here imports a framework to ask: a model that exists has imported its framework.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from nncf.errors import MissingDependency, ModelError


@dataclass(frozen=True)
class Backend:
    """A framework: how its models are recognised, and who compresses them."""

    name: str
    module: str
    model_class: tuple[str, str]
    extra: str


BACKENDS = (
    Backend("torch", "nncf.torch", ("torch.nn.modules.module", "Module"), "torch"),
    Backend("tensorflow", "nncf.tensorflow", ("keras.src.models.model", "Model"), "tf"),
)


def backend_of(model: Any) -> str:
    """Return the name of the framework that ``model`` belongs to: ``"torch"``, ``"tensorflow"``.

    Raises ModelError, with what was found, for anything else.
    """
    if isinstance(model, type):
        raise _refusal(model, f"the class {model.__name__} itself; pass an instance of it")
    for base in type(model).__mro__:
        for backend in BACKENDS:
            home, name = backend.model_class
            if (base.__module__, base.__qualname__) != (home, name):
                continue
            if getattr(sys.modules.get(home), name, None) is base:
                return backend.name
    kind = type(model)
    raise _refusal(model, f"an object of class {kind.__module__}.{kind.__qualname__}")


def _refusal(model: Any, found: str) -> ModelError:
    compressed_pair = isinstance(model, tuple) and len(model) == 2
    advice = (
        " create_compressed_model returns a pair: (controller, model)." if compressed_pair else ""
    )
    return ModelError(f"expected a model (torch.nn.Module or keras.Model), found {found}.{advice}")


def backend_module(name: str) -> ModuleType:
    """Import and return the backend ``name``, ``nncf.torch`` for example.

    Raises MissingDependency when its framework is not installed, ModelError when this release
    has no such backend.
    """
    backend = next(item for item in BACKENDS if item.name == name)
    try:
        return importlib.import_module(backend.module)
    except ModuleNotFoundError as error:
        if error.name == backend.module:
            raise ModelError(
                f"this release has no backend for {backend.name} models. "
                "Compress a torch.nn.Module instead."
            ) from None
        if error.name == backend.name:
            raise MissingDependency(
                backend.name, backend.extra, f"compressing {name} models"
            ) from error
        raise


def create_compressed_model(
    model: Any, config: Any, compression_state: Any = None, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    """Compress ``model`` as ``config`` (an NNCFConfig) says; return ``(controller, model)``.

    A PyTorch model is changed in place and keeps its class, attributes and parameter names; a
    Keras model is rebuilt of the same layers. Pass the ``compression_state`` of a checkpoint to restore compression as it was, without
    initialisation. Further arguments are those of the backend, see
    ``nncf.torch.create_compressed_model``.
    """
    backend = backend_module(backend_of(model))
    pair: tuple[Any, Any] = backend.create_compressed_model(
        model, config, compression_state, *args, **kwargs
    )
    return pair


def load_state(model: Any, state_dict: Any, *args: Any, **kwargs: Any) -> int:
    """Load ``state_dict`` into a compressed model, whatever prefixes its keys have.

    Returns the number of entries loaded. Arguments as in ``nncf.torch.load_state``:
    ``is_resume=True`` demands that everything matches.
    """
    name = backend_of(model)
    if name != "torch":
        raise ModelError(
            "load_state is for PyTorch models. A Keras model restores its weights itself: "
            "model.load_weights(path), or tf.train.Checkpoint(model=model).restore(path)."
        )
    loaded: int = backend_module(name).load_state(model, state_dict, *args, **kwargs)
    return loaded


def strip(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the compressed ``model`` as a plain model of its framework, ready to deploy."""
    return backend_module(backend_of(model)).strip(model, *args, **kwargs)


def register_module(*args: Any, **kwargs: Any) -> Any:
    """Return a decorator for classes of modules whose ``weight`` should be compressed.

    Arguments as in ``nncf.torch.register_module``.
    """
    return backend_module("torch").register_module(*args, **kwargs)
