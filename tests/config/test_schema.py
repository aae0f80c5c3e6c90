# SPDX-License-Identifier: Apache-2.0
"""The JSON schema accepts and refuses what the reader accepts and refuses."""

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncf import algorithms
from nncf.config import NNCFConfig
from nncf.config.reading import read_options
from nncf.errors import ConfigError

VALIDATOR = jsonschema.Draft202012Validator(NNCFConfig.schema())


@pytest.mark.parametrize(
    "config",
    [
        {"target_device": "TPU"},
        {"compression": [{"algorithm": "nothing"}]},
        {"compression": {}},
        {"compression": {"algorithm": "quantization", "bits": 8}},
        {"compression": {"algorithm": "quantization", "weights": {"bits": 9}}},
        {"compression": {"algorithm": "knowledge_distillation"}},
        {"compression": {"algorithm": "magnitude_sparsity", "params": {"schedule": "adaptive"}}},
        {"input_info": {"sample_size": []}},
        {"accuracy_aware_training": {"mode": "early_exit"}},
        {"ignored_scopes": 5},
    ],
)
def test_schema_and_reader_refuse(config):
    """What the schema refuses the reader refuses too."""
    assert not VALIDATOR.is_valid(config)
    with pytest.raises(ConfigError):
        read_options(config)


def test_every_property_is_described():
    """No key is without a sentence that says what it means."""
    schema = NNCFConfig.schema()
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        for name, fragment in section.get("properties", {}).items():
            if section.get("title") is None:
                continue
            assert fragment.get("description"), (section["title"], name)


values = st.one_of(
    st.sampled_from([0, 1, 4, 0.5, -1, 8.0, 9, 2.5, True, False, None, "a", [], {}, ["a"], "L1"])
)


@settings(deadline=None)
@given(
    name=st.sampled_from(algorithms.names()),
    values=st.lists(values, min_size=1, max_size=2),
    data=st.data(),
)
def test_reader_accepts_only_what_the_schema_accepts(name, values, data):
    """A flat section that is read is also valid under the schema."""
    fields = list(algorithms.options_class(name).model_fields)
    section = {data.draw(st.sampled_from(fields)): value for value in values}
    section = {"algorithm": name, **{k: v for k, v in section.items() if k != "algorithm"}}
    try:
        read_options({"compression": section})
    except ConfigError:
        return
    assert VALIDATOR.is_valid({"compression": section})
