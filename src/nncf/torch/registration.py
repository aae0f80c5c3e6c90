# SPDX-License-Identifier: Apache-2.0
"""``register_module``: what the author of a module says about compressing its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from nncf import algorithms
from nncf.errors import ModelError

Class = TypeVar("Class", bound=type[nn.Module])

_ATTRIBUTE = "_nncf_registration"


@dataclass(frozen=True)
class Registration:
    """Names of the parameters to compress, their axis of output channels, algorithms to keep out.

    No names: those that the operations treat as weights. No axis: the one the operation has.
    """

    fields: frozenset[str] = frozenset()
    channel_axis: int | None = None
    ignored_algorithms: frozenset[str] = frozenset()

    def compresses(self, field: str) -> bool | None:
        """Tell whether a parameter is to be compressed; None leaves it to the operation."""
        return field in self.fields if self.fields else None


NOTHING = Registration()
"""What holds for modules of classes that were not registered."""


def registration_of(module: nn.Module | None) -> Registration:
    """Return what was registered for a module's class, or for one that it derives from."""
    found: Registration = getattr(type(module), _ATTRIBUTE, NOTHING)
    return found


def register_module(
    *quantizable_field_names: str,
    ignored_algorithms: Iterable[str] | None = None,
    target_weight_dim_for_compression: int | None = None,
) -> Callable[[Class], Class]:
    """Return a class decorator that says how a module's own parameters are compressed.

    Without it the weight of every convolution, linear layer and embedding is compressed, in
    custom modules too. With it, algorithms in ``ignored_algorithms`` leave the module's
    operations alone; if there are ``quantizable_field_names``, of its parameters these and no
    others are compressed, whatever operation takes them. ``target_weight_dim_for_compression``
    is the axis of output channels, None the one that the operation has.

        @nncf.register_module("gain", ignored_algorithms=["magnitude_sparsity"])
        class Scale(torch.nn.Module): ...

    Raises ModelError when it decorates something else than a class of modules, ConfigError for
    an unknown algorithm.
    """
    registration = Registration(
        frozenset(quantizable_field_names),
        target_weight_dim_for_compression,
        frozenset(algorithms.canonical(name) for name in ignored_algorithms or ()),
    )

    def register(cls: Class) -> Class:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ModelError(
                f"register_module decorates subclasses of torch.nn.Module, got {cls!r}. Write "
                "@nncf.register_module() above the class."
            )
        setattr(cls, _ATTRIBUTE, registration)
        return cls

    return register
