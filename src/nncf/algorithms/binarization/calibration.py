# SPDX-License-Identifier: Apache-2.0
"""Which statistic of the data gives a binarized activation its first scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nncf.algorithms.binarization.formula import TOP_SHARE
from nncf.algorithms.binarization.scheme import Binarizer
from nncf.compression.calibration import Calibration, Recipe
from nncf.compression.layout import Insert

if TYPE_CHECKING:
    from nncf.algorithms.binarization import BinarizationOptions
    from nncf.algorithms.initializer_options import RangeOptions


def calibrations(options: BinarizationOptions, inserts: Iterable[Insert]) -> dict[str, Calibration]:
    """Return what each binarizer of an activation wants to know of the data, by its name."""
    (entry,) = options.initializer.ranges()
    required = options.initializer.range is not None
    return {
        insert.name: Calibration(recipe(entry), entry.num_init_samples, required=required)
        for insert in inserts
        if isinstance(insert.op, Binarizer) and not insert.op.weight
    }


def recipe(entry: RangeOptions) -> Recipe:
    """Return how the scale, the upper end of a range, is computed.

    Unless a type was written, 0.1 % of the values lie above it.
    """
    if "type" not in entry.model_fields_set:
        return Recipe("percentiles", "all", percentiles=(0.0, 100 * (1 - TOP_SHARE)))
    percentiles = (entry.params.min_percentile, entry.params.max_percentile)
    if entry.type == "threesigma":
        return Recipe("three_sigma", "all")
    if "percentile" in entry.type:
        mean = entry.type == "mean_percentile"
        return Recipe("percentiles", "batch" if mean else "all", mean, mean, False, percentiles)
    mean = entry.type == "mean_min_max"
    return Recipe("extremes", "batch", mean, mean)
