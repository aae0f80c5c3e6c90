# SPDX-License-Identifier: Apache-2.0
"""Which schemes a quantizer may choose from: the device's list, cut down by the configuration."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nncf.algorithms.quantization.hardware import Hardware, Schemes
from nncf.algorithms.quantization.scheme import Scheme
from nncf.errors import ConfigError
from nncf.graph.scopes import Scopes

_KEYS = ("bits", "mode", "signed", "per_channel")


def written(options: Any, name: str) -> Any:
    """Return an option that the configuration gives, None where it leaves the default."""
    fields = getattr(options, "model_fields_set", None)
    if options is None or (fields is not None and name not in fields):
        return None
    return getattr(options, name, None)


@dataclass(frozen=True)
class OpenWidths:
    """Bit widths that are chosen for each quantizer later, and by what means.

    ``weights`` and ``activations`` are those to choose from where the device restricts nothing,
    the usual one first. ``by_scope`` says that they are given scope by scope, so that ``bits`` of a
    group is only what the others get.
    """

    weights: tuple[int, ...] = ()
    activations: tuple[int, ...] = ()
    by_scope: bool = False


NOTHING_OPEN = OpenWidths()


@dataclass(frozen=True)
class Constraints:
    """What the configuration demands of one group (``weights`` or ``activations``).

    ``wanted`` maps bits, mode, signed, per_channel to values; ``overrides`` does so for single
    operations, whose values win. ``fixed`` are fields copied into every scheme.
    """

    group: str
    hardware: Hardware
    wanted: Mapping[str, Any]
    overrides: Mapping[str, Mapping[str, Any]]
    fixed: Mapping[str, Any]
    open_widths: OpenWidths = NOTHING_OPEN

    def schemes(self, key: str, offered: Schemes | None) -> Schemes:
        """Return the schemes for a quantizer of operation ``key``, best first.

        Raises ConfigError when the device offers none that the configuration allows.
        """
        override = self.overrides.get(key, {})
        wanted = {**self.wanted, **override}
        unnamed = None  # the bits of quantizers that no scope names
        if self.open_widths.by_scope and "bits" not in override:
            unnamed = wanted.pop("bits", None)
        if offered is None:
            return tuple(
                Scheme(**{**wanted, **self.fixed, "bits": bits})
                for bits in self._widths(wanted.get("bits"), unnamed)
            )
        allowed = _allowed(offered, tuple(sorted(wanted.items())))
        if not allowed or (unnamed and all(scheme.bits != unnamed for scheme in allowed)):
            raise self._conflict(key, {**self.wanted, **override}, offered)
        if unnamed:
            allowed = tuple(sorted(allowed, key=lambda scheme: scheme.bits != unnamed))
        return tuple(replace(scheme, **self.fixed) for scheme in allowed)

    def _widths(self, settled: int | None, unnamed: int | None) -> tuple[int, ...]:
        """Return the bit widths on a device that restricts nothing, best first."""
        if settled is not None:
            return (settled,)
        free = getattr(self.open_widths, self.group) or (Scheme.bits,)
        return free if unnamed is None else (unnamed, *(b for b in free if b != unnamed))

    def _conflict(self, key: str, wanted: Mapping[str, Any], offered: Schemes) -> ConfigError:
        asked = ", ".join(f"{name} {value}" for name, value in wanted.items())
        choices = "; ".join(dict.fromkeys(str(scheme) for scheme in offered))
        return ConfigError(
            f"{self.group}: {asked} cannot be had on target_device {self.hardware.device} at "
            f"{key}. It offers: {choices}. Change the constraint, ignore the operation, or set "
            '"target_device": "TRIAL", which restricts nothing.'
        )


@functools.lru_cache(maxsize=1024)
def _allowed(offered: Schemes, wanted: tuple[tuple[str, Any], ...]) -> Schemes:
    found = []
    for scheme in offered:
        settings = dict(wanted)
        signed = settings.pop("signed", None)
        if any(getattr(scheme, name) != value for name, value in settings.items()):
            continue
        if signed is not None and scheme.signed not in (None, signed):
            continue
        found.append(scheme if signed is None else replace(scheme, signed=signed))
    return tuple(found)


def read_constraints(
    group: str, options: Any, hardware: Hardware, scopes: Scopes, *, ends: frozenset[str]
) -> Constraints:
    """Return the constraints that quantization ``options`` put on ``group``.

    ``ends`` are the first and the last layers: where the group asks for few bits, these keep
    ``first_and_last_bits``, but for what ``scope_overrides`` says.

    Raises ConfigError for a preset on a device without presets, ScopeNotFound for a scope in
    ``scope_overrides`` that matches nothing.
    """
    section = getattr(options, group, None)
    wanted = {name: written(section, name) for name in _KEYS}
    wanted["mode"] = wanted["mode"] or _preset_mode(group, options, hardware)
    fixed = {
        "weight": group == "weights",
        "lr_multiplier": getattr(options, "compression_lr_multiplier", None),
        "logarithm_scale": bool(getattr(section, "logarithm_scale", False)),
    }
    return Constraints(
        group=group,
        hardware=hardware,
        wanted={name: value for name, value in wanted.items() if value is not None},
        overrides=_read_overrides(group, options, scopes, _ends(_fewest(section), options, ends)),
        fixed=fixed,
    )


def _preset_mode(group: str, options: Any, hardware: Hardware) -> str | None:
    preset = written(options, "preset")
    if hardware.device == "VPU":
        if preset is not None:
            raise ConfigError(
                'preset: target_device "VPU" has no presets. Remove the key and set '
                '"mode" under "weights" and "activations" instead.'
            )
        return None
    return "asymmetric" if preset == "mixed" and group == "activations" else "symmetric"


def _fewest(section: Any) -> int | None:
    """Return the fewest bits that a group asks for, None where it leaves them to the device."""
    bits: int | None = written(section, "bits")
    adaptive = written(section, "adaptive_bits")
    return bits if adaptive is None else min(adaptive)


def _ends(bits: int | None, options: Any, ends: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Return the bits that the first and last layers keep where the others have fewer.

    Nothing where each quantizer gets bits of its own (``initializer.precision``).
    """
    least = getattr(options, "first_and_last_bits", None)
    chosen = getattr(getattr(options, "initializer", None), "precision", None) is not None
    if bits is None or least is None or bits >= least or chosen:
        return {}
    return {key: {"bits": least} for key in sorted(ends)}


def _read_overrides(
    group: str, options: Any, scopes: Scopes, found: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Add to ``found`` what ``scope_overrides`` says of single operations, which wins."""
    overrides = getattr(options, "scope_overrides", None)
    listed: Mapping[str, Any] = (getattr(overrides, group, None) if overrides else None) or {}
    validate = bool(getattr(options, "validate_scopes", True))
    for scope, section in listed.items():
        where = f"scope_overrides.{group}"
        settings = {name: written(section, name) for name in _KEYS}
        given = {name: value for name, value in settings.items() if value is not None}
        for key in scopes.match([scope], where=where, validate=validate):
            # Several scopes may match one operation: the one written last wins key by key.
            found.setdefault(key, {}).update(given)
    return found
