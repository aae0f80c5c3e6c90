# SPDX-License-Identifier: Apache-2.0
"""The base of all Options: reading, rules, remarks, tables."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncf.errors import ConfigError
from nncf.option_messages import Problem, path_text
from nncf.options import (
    Bits,
    Count,
    Flag,
    Fraction,
    Level,
    Options,
    PositiveNumber,
    Scopes,
    Text,
    option,
    option_table,
)


class Legs(Options):
    """A section."""

    count: Count = option(4, "How many.")
    fast: Flag = option(True, "Whether they run.", backends=("torch",))


class Pet(Options):
    """A section with a section."""

    name: Text = option(..., "What it listens to.")
    weight: PositiveNumber | None = option(None, "In kilograms.")
    legs: Legs = option(Legs(), "What it walks on.")
    tags: Scopes = option((), "Labels | marks.")

    def rules(self):
        if self.legs.count == 3:
            yield Problem(("legs", "count"), " = 3: no pet has three legs.")

    def remarks(self):
        if self.weight is None:
            yield from self.no_effect(("tags",), "weight")


def test_read():
    """Read returns typed values, defaults where nothing was written."""
    pet = Pet.read({"name": "Rex", "legs": {"count": 2.0}})
    assert (pet.name, pet.weight, pet.legs) == ("Rex", None, Legs(count=2))
    assert isinstance(pet.legs.count, int)
    assert pet.has("name", "weight") == ["name"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "pet.name: required key is missing. Expected a string."),
        ({"name": 3}, "pet.name = 3: expected a string."),
        ({"name": "a", "weight": 0}, "pet.weight = 0: expected a number > 0."),
        ({"name": "a", "weight": True}, "pet.weight = true: expected a number > 0."),
        (
            {"name": "a", "legs": {"count": 1.5}},
            "pet.legs.count = 1.5: expected a whole number ≥ 0.",
        ),
        ({"name": "a", "legs": {"count": 3}}, "pet.legs.count = 3: no pet has three legs."),
        ({"name": "a", "legs": []}, "pet.legs = []: expected an object with keys count, fast."),
        (
            {"name": "a", "legs": {"cuont": 3}},
            'pet.legs.cuont: unknown key. Nearest: "count". Keys here: count, fast.',
        ),
        ({"name": "a", "tags": [""]}, 'pet.tags[0] = "": an empty scope matches nothing; '),
    ],
)
def test_messages(data, message):
    """Every kind of slip is told with path, value and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        Pet.read(data, path="pet")
    assert str(caught.value).startswith(message)


def test_remarks_have_full_paths():
    """Remarks of inner sections carry the path from the outside."""
    pet = Pet.read({"name": "a", "tags": "b"})
    assert [str(remark) for remark in pet.all_remarks(("pets", 3))] == [
        "pets[3].tags has no effect: it is read only with weight."
    ]


def test_table():
    """The table lists all keys with what is allowed, the default, the meaning, the backends."""
    assert option_table(Pet) == (
        "| Key | Allowed | Default | Meaning | Backends |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| `name` | a string | required | What it listens to. | torch, tensorflow |\n"
        "| `weight` | a number > 0 | unset | In kilograms. | torch, tensorflow |\n"
        "| `legs` | a section | unset | What it walks on. | torch, tensorflow |\n"
        "| `legs.count` | a whole number ≥ 0 | `4` | How many. | torch, tensorflow |\n"
        "| `legs.fast` | true or false | `true` | Whether they run. | torch |\n"
        "| `tags` | a scope or a list of scopes (strings) | `[]` | Labels \\| marks. "
        "| torch, tensorflow |\n"
    )


def test_path_text():
    """Paths read like the access in a program."""
    assert path_text(("a", 0, "b", "c/d e", "f")) == 'a[0].b["c/d e"].f'


class Numbers(Options):
    """One field of each kind of number."""

    count: Count = option(0, "")
    bits: Bits = option(8, "")
    level: Level = option(0.0, "")
    fraction: Fraction = option(0.0, "")


@settings(deadline=None)
@given(value=st.integers() | st.floats() | st.booleans() | st.text(max_size=3))
def test_numbers_are_numbers(value):
    """A number is taken if it is a finite JSON number within its bounds, else refused."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = number and value == value and abs(value) != float("inf") and int(value) == value
    expected = {
        "count": whole and 0 <= value < 2**53,
        "bits": whole and 1 <= value <= 8,
        "level": number and 0 <= value < 1,
        "fraction": number and 0 <= value <= 1,
    }
    for name, accepted in expected.items():
        if whole and abs(value) >= 2**53:
            continue  # a float of this size is no exact count; nobody writes one
        options, problems = Numbers.try_read({name: value})
        assert (options is not None) == bool(accepted)
        assert bool(problems) != bool(accepted)
