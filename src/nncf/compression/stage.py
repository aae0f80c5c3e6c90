# SPDX-License-Identifier: Apache-2.0
"""How far compression has come."""

from __future__ import annotations

from enum import IntEnum


class CompressionStage(IntEnum):
    """Compare checkpoints by stage first, by accuracy second.

    ``UNCOMPRESSED``: nothing is applied yet; ``PARTIALLY_COMPRESSED``: on the way to the target;
    ``FULLY_COMPRESSED``: the schedule has reached the target. Adding stages gives the stage of
    algorithms together: equal stages stay, different ones are partial.
    """

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2

    def __add__(self, other: int) -> CompressionStage:
        other = CompressionStage(other)
        return self if self is other else CompressionStage.PARTIALLY_COMPRESSED
