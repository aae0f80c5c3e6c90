# SPDX-License-Identifier: Apache-2.0
"""The functions of the user that a loop calls, with no more arguments than each of them takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from nncf.errors import TrainingError
from nncf.training.goal import to_number


@dataclass(frozen=True)
class Calls:
    """The functions given to ``run``, under the names of its parameters.

    Raises TrainingError for one that cannot be called with what it will be given.
    """

    train_epoch_fn: Callable[..., Any]
    validate_fn: Callable[..., Any]
    configure_optimizers_fn: Callable[[], Any] | None = None
    dump_checkpoint_fn: Callable[..., Any] | None = None
    load_checkpoint_fn: Callable[..., Any] | None = None
    early_stopping_fn: Callable[[float], Any] | None = None
    update_learning_rate_fn: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            function = getattr(self, item.name)
            if function is None and item.default is None:
                continue
            _check(item.name, function)

    def validate(self, model: Any, epoch: int) -> float:
        """Return the metric. Raises TrainingError when ``validate_fn`` returns no number."""
        returned = accepted(self.validate_fn, model, epoch=epoch)
        metric = to_number(returned)
        if metric is None:
            raise TrainingError(
                f"validate_fn returned {_short(returned)}: expected one number, the metric of the "
                "model in the units of uncompressed_model_accuracy. Return, of several, the one "
                "that counts."
            )
        return metric


_POSITIONAL = {
    "train_epoch_fn": ("compression_ctrl", "model"),
    "validate_fn": ("model",),
    "configure_optimizers_fn": (),
    "dump_checkpoint_fn": (
        *("model", "compression_controller", "accuracy_aware_runner", "save_dir"),
    ),
    "load_checkpoint_fn": ("model", "checkpoint_path"),
    "early_stopping_fn": ("metric",),
    "update_learning_rate_fn": ("lr_scheduler", "epoch", "metric", "loss"),
}
_KEYWORDS = {
    "train_epoch_fn": ("optimizer", "lr_scheduler", "epoch"),
    "validate_fn": ("epoch",),
}


def _check(name: str, function: Any) -> None:
    positional, keywords = _POSITIONAL[name], _KEYWORDS.get(name, ())
    wanted = f"{name}({', '.join((*positional, *(f'{keyword}=…' for keyword in keywords)))})"
    if not callable(function):
        raise TrainingError(
            f"{name} = {function!r}: expected a function that is called as {wanted}."
        )
    signature = _signature(function)
    try:
        if signature is not None:
            signature.bind(*positional, **_taken(function, dict.fromkeys(keywords)))
    except TypeError as error:
        raise TrainingError(
            f"{name}{signature} cannot be called as {wanted}: {error}. It may leave keywords out; "
            "give other parameters defaults, or bind them in a closure."
        ) from None


def accepted(function: Callable[..., Any], *positional: Any, **keywords: Any) -> Any:
    """Call a function with those of the keywords that it takes."""
    return function(*positional, **_taken(function, keywords))


def _taken(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    signature = _signature(function)
    if signature is None:
        return dict(keywords)
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(keywords)
    by_name = {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
    return {name: value for name, value in keywords.items() if name in by_name}


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return None


def _short(value: Any) -> str:
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else f"{text[:77]}..."
