# SPDX-License-Identifier: Apache-2.0
"""The top level of a configuration, and what must hold between its sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, InstanceOf, WithJsonSchema

from nncf import algorithms
from nncf.config.accuracy_aware import AccuracyAwareSection, AdaptiveOptions
from nncf.option_messages import Problem
from nncf.options import Former, NonNegative, Options, Positive, Scopes, Text, option


class InputInfo(Options):
    """Shape and kind of one input of the model."""

    sample_size: Annotated[tuple[Positive, ...], Field(min_length=1)] = option(
        ..., "Shape of the input with the batch, for example `[1, 3, 224, 224]`."
    )
    type: Literal["float", "long"] = option("float", "Type of its elements.")
    filler: Literal["ones", "zeros", "random"] = option(
        "ones", "What it is filled with when the model is looked at."
    )
    keyword: Text | None = option(
        None, "Name of the argument of `forward`; unset: passed by position."
    )


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


InputInfos = Annotated[tuple[InputInfo, ...], BeforeValidator(_as_list)]
"""One object counts as a list of one."""


class RootOptions(Options):
    """A whole configuration: typed, frozen, checked."""

    former: ClassVar[tuple[Former, ...]] = tuple(
        Former(key, "Shapes are never compared; remove the key.")
        for key in ("disable_shape_matching", "scopes_without_shape_matching")
    )

    input_info: InputInfos = option(
        (),
        "The inputs of the model: one object or a list. Unset: taken from the training data.",
    )
    target_device: Literal["ANY", "CPU", "GPU", "VPU", "TRIAL", "CPU_SPR"] = option(
        "ANY",
        "Where the model will run; decides what is quantized and how. TRIAL knows no limits.",
    )
    compression: Annotated[tuple[InstanceOf[Options], ...], WithJsonSchema({"type": "array"})] = (
        option((), "The algorithms: one object or a list; they apply in this order.")
    )
    accuracy_aware_training: AccuracyAwareSection | None = option(
        None, "Settings of the loops that train until the accuracy is good enough."
    )
    compression_lr_multiplier: NonNegative | None = option(
        None, "Factor on the gradients of everything that compression trains."
    )
    ignored_scopes: Scopes = option(
        (), "Operations that all algorithms leave alone; adds to the algorithms' own lists."
    )
    target_scopes: Scopes | None = option(
        None, "If given, all algorithms act on these operations only, whatever they list."
    )
    log_dir: Text = option(".", "Folder for graphs and other records.")

    def algorithm(self, name: str) -> Options | None:
        """Return the options of the algorithm ``name``, or None when it is not asked for."""
        found = [item for item in self.compression if getattr(item, "algorithm", None) == name]
        return found[0] if found else None


def rules_between(root: RootOptions) -> Iterator[Problem]:
    """Yield what is wrong between the sections of ``root``."""
    yield from _duplicates(root)
    yield from _rivals(root)
    yield from _presets(root)
    yield from _adaptive(root)


def _name(options: Options) -> str:
    return str(getattr(options, "algorithm", ""))


def _duplicates(root: RootOptions) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, item in enumerate(root.compression):
        if _name(item) in first:
            yield Problem(
                ("compression", index),
                f': "{_name(item)}" is configured already at '
                f"compression[{first[_name(item)]}]; join the two sections.",
            )
        first.setdefault(_name(item), index)


def _rivals(root: RootOptions) -> Iterator[Problem]:
    """Yield the algorithms that would undo each other's work."""
    first: dict[str, str] = {}
    for index, item in enumerate(root.compression):
        other = first.setdefault(item.role, _name(item)) if item.role else _name(item)
        if other != _name(item):
            yield Problem(
                ("compression", index),
                f': "{_name(item)}" {item.role}, and so does "{other}"; each would undo what the '
                "other does. Keep one of the two.",
            )


def _presets(root: RootOptions) -> Iterator[Problem]:
    if root.target_device != "VPU":
        return
    for index, item in enumerate(root.compression):
        if item.has("preset"):
            yield Problem(
                ("compression", index, "preset"),
                ' is given, but target_device "VPU" has no presets. Remove it, or write '
                '"mode" for weights and activations.',
            )


def _adaptive(root: RootOptions) -> Iterator[Problem]:
    if not isinstance(root.accuracy_aware_training, AdaptiveOptions):
        return
    path = ("accuracy_aware_training", "mode")
    mode = ' = "adaptive_compression_level"'
    driven = [_name(item) for item in root.compression if item.is_adaptive]
    classes = {name: algorithms.options_class(name) for name in algorithms.names()}
    listed = ", ".join(
        f'"{name}"' + (f" with {kind.adaptive_by}" if kind.adaptive_by else "")
        for name, kind in classes.items()
        if kind.adaptive or kind.adaptive_by
    )
    if not driven:
        yield Problem(
            path,
            f"{mode} needs an algorithm whose compression rate can be driven: one of {listed}. "
            'Add one, or write "mode": "early_exit".',
        )
    if len(driven) > 1:
        yield Problem(
            path,
            f'{mode} drives one algorithm, but "{driven[0]}" and "{driven[1]}" are both '
            'configured. Remove one, or write "mode": "early_exit".',
        )
