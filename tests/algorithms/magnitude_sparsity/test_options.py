# SPDX-License-Identifier: Apache-2.0
"""What configurations of magnitude sparsity mean, and which are refused."""

from __future__ import annotations

import pytest

import nncf
from nncf.algorithms.magnitude_sparsity import MagnitudeSparsityOptions


def read(**section):
    return MagnitudeSparsityOptions.read(section)


def test_a_pattern_sets_the_target():
    """2:4 ends at one half, 1:4 at three quarters, without a target in the configuration."""
    assert read(params={"pattern": "2:4"}).params.final_level() == 0.5
    assert read(params={"pattern": "1:4"}).params.final_level() == 0.75
    assert read(params={"pattern": "1:4", "schedule": "exponential"}).params.final_level() == 0.75
    assert read(params={"sparsity_target": 0.3}).params.final_level() == 0.3


@pytest.mark.parametrize("pattern", ["2", "0:4", "4:4", "5:4", "2:4:6", "a:b", "-1:4", 2])
def test_what_is_no_pattern_is_refused(pattern):
    """A pattern is N:M with 0 < N < M."""
    with pytest.raises(nncf.ConfigError, match=r"params\.pattern"):
        read(params={"pattern": pattern})


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"params": {"pattern": "2:4", "sparsity_target": 0.6}}, "params.sparsity_target"),
        ({"params": {"pattern": "2:4", "sparsity_target": 0.4}}, "params.sparsity_target"),
        (
            {"params": {"pattern": "1:4", "schedule": "multistep"}},
            "params.multistep_sparsity_levels",
        ),
        (
            {
                "params": {
                    "pattern": "2:4",
                    "schedule": "multistep",
                    "multistep_steps": [1, 2],
                    "multistep_sparsity_levels": [0.1, 0.6, 0.5],
                }
            },
            "params.multistep_sparsity_levels",
        ),
        ({"sparsity_init": 0.6, "params": {"pattern": "2:4"}}, "sparsity_init"),
        (
            {"params": {"pattern": "2:4"}, "scope_overrides": {"a": {"sparsity_target": 0.1}}},
            "scope_overrides",
        ),
        (
            {
                "params": {"sparsity_level_setting_mode": "local"},
                "scope_overrides": {"a": {"sparsity_target": 0.1}},
            },
            "scope_overrides",
        ),
        ({"scope_overrides": {"a": {}}}, "scope_overrides.a.sparsity_target"),
        ({"scope_overrides": {"a": {"sparsity_target": 1.0}}}, "scope_overrides.a.sparsity_target"),
    ],
)
def test_contradictions_are_refused(section, path):
    """Levels that a pattern cannot have, and overrides of what does not exist, are named."""
    with pytest.raises(nncf.ConfigError) as caught:
        read(**section)
    assert str(caught.value).startswith(path)
