# SPDX-License-Identifier: Apache-2.0
"""Which statistic of the calibration data gives each quantizer its range; without a framework.

``initializer.range`` of the configuration and the schemes of a layout become one
``Calibration`` per quantizer (``calibrations``); a backend's collector carries it out
(``nncf/torch/statistics.py``). The types:

| type | of what | lower end | upper end |
|---|---|---|---|
| ``min_max`` | all values | smallest | largest |
| ``mixed_min_max``, per-tensor activations | each sample | smallest; asymmetric: mean | mean |
| ``mixed_min_max``, all others | all values | smallest | largest |
| ``mean_min_max`` | each batch | mean | mean |
| ``percentile`` | all values | lower percentile | upper percentile |
| ``mean_percentile`` | each batch | mean of lower percentiles | mean of upper percentiles |
| ``threesigma`` | all values but zeros | m - 3 s | m + 3 s |
| ``least_error`` | all values | those with the least mean squared rounding error | |

m is the median, s = 1.4826230 · median(|x - m|), the standard deviation of a normal
distribution with that median deviation. For symmetric quantizers the largest value is that
of |x| in the types with ``min_max`` in their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nncf.algorithms.quantization.scheme import Scheme
from nncf.compression.calibration import Calibration, Recipe, RoundingGrid
from nncf.compression.layout import Insert
from nncf.errors import ConfigError
from nncf.graph.scopes import Scopes

if TYPE_CHECKING:
    from nncf.algorithms.initializer_options import RangeOptions
    from nncf.algorithms.quantization.options import QuantizationOptions, QuantizerOverride


def calibrations(
    options: QuantizationOptions, inserts: Iterable[Insert], scopes: Scopes
) -> dict[str, Calibration]:
    """Return what each quantizer of a layout wants to know of the data, by its name.

    ``scope_overrides`` win over ``initializer.range``. Raises ConfigError when not exactly one
    entry of a list is for a quantizer, ScopeNotFound when a scope matches no operation.
    """
    general = _RangeTable(options, scopes)
    overrides = {
        "weights": _overrides(options.scope_overrides.weights, scopes),
        "activations": _overrides(options.scope_overrides.activations, scopes),
    }
    found: dict[str, Calibration] = {}
    for insert in inserts:
        if not isinstance(insert.op, Scheme):
            continue
        addresses = {point.address for point in insert.points}
        special = [entry for matched, entry in overrides[_group(insert.op)] if matched & addresses]
        entry = special[-1] if special else general.entry_for(insert.name, insert.op, addresses)
        required = bool(special) or options.initializer.range is not None
        found[insert.name] = calibration(entry, insert.op, len(insert.shape), required=required)
    return found


def calibration(
    entry: RangeOptions, scheme: Scheme, rank: int, *, required: bool = True
) -> Calibration:
    """Return the wish of one quantizer whose tensor has ``rank`` axes."""
    return Calibration(
        recipe=recipe(entry, scheme),
        samples=entry.num_init_samples,
        channel_axis=scheme.channel_axis if scheme.per_channel else None,
        rank=rank,
        weight=scheme.weight,
        required=required,
    )


def recipe(entry: RangeOptions, scheme: Scheme) -> Recipe:
    """Return how the range is computed (the table at the top of this file)."""
    symmetric = scheme.mode == "symmetric"
    kind = entry.type or ("least_error" if scheme.has_few_bits else "mixed_min_max")
    percentiles = (entry.params.min_percentile, entry.params.max_percentile)
    extremes = Recipe("extremes", "batch", absolute_high=symmetric)
    by_sample = kind == "mixed_min_max" and not scheme.weight and not scheme.per_channel
    if by_sample:
        return replace(extremes, per="sample", average_low=not symmetric, average_high=True)
    recipes = {
        "least_error": Recipe("least_error", "all", grid=rounding_grid(scheme)),
        "threesigma": Recipe("three_sigma", "all"),
        "percentile": Recipe("percentiles", "all", percentiles=percentiles),
        "mean_percentile": Recipe("percentiles", "batch", True, True, percentiles=percentiles),
        "mean_min_max": replace(extremes, average_low=True, average_high=True),
    }
    return recipes.get(kind, extremes)


def rounding_grid(scheme: Scheme) -> RoundingGrid:
    """Return the grids that a quantizer may end up with, by the sign of what it sees."""
    if scheme.mode == "asymmetric":
        return RoundingGrid(unsigned=scheme.levels(False), signed=None)
    unsigned, signed = scheme.levels(False), scheme.levels(True)
    return RoundingGrid(
        unsigned=None if scheme.signed else unsigned,
        signed=signed if scheme.signed is not False else unsigned,
        zero=scheme.bits > 1 or scheme.signed is False,
    )


class _RangeTable:
    """``initializer.range`` with the operations that each of its entries is for."""

    def __init__(self, options: QuantizationOptions, scopes: Scopes) -> None:
        self.entries = options.initializer.ranges()
        self.is_list = isinstance(options.initializer.range, tuple)
        self.targets: list[set[str] | None] = []
        self.ignored: list[set[str]] = []
        for index, entry in enumerate(self.entries if self.is_list else ()):
            where = f"initializer.range[{index}]"
            lists = [
                set(scopes.match(names, where=f"{where}.{key}", validate=options.validate_scopes))
                if (names := getattr(entry, key)) is not None
                else None
                for key in ("target_scopes", "ignored_scopes")
            ]
            self.targets.append(lists[0])
            self.ignored.append(lists[1] or set())

    def entry_for(self, name: str, scheme: Scheme, addresses: set[str]) -> RangeOptions:
        """Return the one entry for the quantizer ``name`` at operations with ``addresses``."""
        if not self.is_list:
            return self.entries[0]
        found = [i for i in range(len(self.entries)) if self._is_for(i, scheme, addresses)]
        if len(found) == 1:
            return self.entries[found[0]]
        if not found:
            raise ConfigError(
                f"Location {name} does not match any per-layer initialization parameter "
                "definition! Each quantizer needs exactly one entry of initializer.range; this is "
                f"one of the {_group(scheme)}: add its operation to the target_scopes of an entry."
            )
        raise ConfigError(
            f"Location {name} matches more than one per-layer initialization parameter "
            f"definition: entries {', '.join(map(str, found))} of initializer.range. Exactly one "
            "may match: narrow the scopes, or part weights from activations with "
            "target_quantizer_group."
        )

    def _is_for(self, index: int, scheme: Scheme, addresses: set[str]) -> bool:
        group = getattr(self.entries[index], "target_quantizer_group", None)
        targets = self.targets[index]
        return (
            group in (None, _group(scheme))
            and (targets is None or bool(targets & addresses))
            and not self.ignored[index] & addresses
        )


def _overrides(
    section: Mapping[str, QuantizerOverride], scopes: Scopes
) -> list[tuple[set[str], RangeOptions]]:
    return [
        (set(scopes.find(scope)), override.initializer.range)
        for scope, override in section.items()
        if override.initializer.range is not None
    ]


def _group(scheme: Scheme) -> str:
    return "weights" if scheme.weight else "activations"
