# SPDX-License-Identifier: Apache-2.0
"""Which statistic of the data gives a binarized activation its first scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nncf.algorithms.binarization.scheme import Binarizer
from nncf.compression.calibration import Calibration, Recipe, RoundingGrid
from nncf.compression.layout import Insert

if TYPE_CHECKING:
    from nncf.algorithms.binarization import BinarizationOptions
    from nncf.algorithms.initializer_options import RangeOptions

TWO_LEVELS = RoundingGrid(unsigned=(0, 1), signed=(0, 1))
"""Zero and the scale, half of which is the first threshold."""


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

    Unless a type was written, it is where the two values are nearest to what they stand for.
    """
    percentiles = (entry.params.min_percentile, entry.params.max_percentile)
    recipes = {
        "threesigma": Recipe("three_sigma", "all"),
        "percentile": Recipe("percentiles", "all", percentiles=percentiles),
        "mean_percentile": Recipe("percentiles", "batch", True, True, percentiles=percentiles),
        "mean_min_max": Recipe("extremes", "batch", True, True),
        "mixed_min_max": Recipe("extremes", "sample", average_high=True),
        "min_max": Recipe("extremes", "batch"),
    }
    return recipes.get(entry.type or "", Recipe("least_error", "all", grid=TWO_LEVELS))
