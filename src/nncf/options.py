# SPDX-License-Identifier: Apache-2.0
"""The base of all Options: typed, frozen settings from which schema, defaults and docs follow.

class PetOptions(Options):
    name: Text = option("Rex", "What it listens to.")
    legs: Count = option(4, "How many it walks on.", backends=("torch",))

PetOptions.read({"legs": 3})          # PetOptions(legs=3)
PetOptions.read({"leg": 3})           # ConfigError: leg: unknown key. Nearest: "legs". …
print(option_table(PetOptions))       # the markdown table of the documents
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from nncf.errors import hint
from nncf.option_messages import Part, Problem, RulesBroken, raise_problems, translate

BACKENDS = ("torch", "tensorflow")


def wrong(text: str) -> PydanticCustomError:
    """Return the error by which a validator says what is wrong with its value, in words."""
    return PydanticCustomError("nncf", "{text}", {"text": text})


def _is_number(value: Any) -> Any:
    # pydantic would take true and "8" for numbers; in a JSON file they are slips.
    if isinstance(value, bool | str | bytes):
        raise PydanticCustomError("number", "a number is expected")
    return value


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def empty_is_unset(value: Any) -> Any:
    """Return None for an empty section: writing ``{}`` asks for nothing (a BeforeValidator)."""
    return None if value == {} else value


def _check_scope(text: str) -> str:
    if not text:
        raise wrong(
            "an empty scope matches nothing; name an operation or write {re} and a pattern."
        )
    if "{re}" in text:
        try:
            re.compile(text.replace("{re}", ""))
        except re.error as error:
            raise wrong(f"not a valid regular expression: {error}.") from None
    return text


NUMERIC = BeforeValidator(_is_number)
"""Ends the Annotated type of a number; bounds go before it, as ``Field(ge=…)``."""

Whole = Annotated[int, NUMERIC]
Count = Annotated[int, Field(ge=0), NUMERIC]
Positive = Annotated[int, Field(ge=1), NUMERIC]
Bits = Annotated[int, Field(ge=1, le=8), NUMERIC]
Number = Annotated[float, NUMERIC]
NonNegative = Annotated[float, Field(ge=0), NUMERIC]
PositiveNumber = Annotated[float, Field(gt=0), NUMERIC]
Fraction = Annotated[float, Field(ge=0, le=1), NUMERIC]
Level = Annotated[float, Field(ge=0, lt=1), NUMERIC]
Flag = StrictBool
Text = str
Scope = Annotated[str, AfterValidator(_check_scope)]
Scopes = Annotated[
    tuple[Scope, ...],
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "words": "a scope or a list of scopes (strings)",
        }
    ),
]
"""Names of operations, or ``{re}`` and a regular expression; one string counts as a list of one."""


def option(default: Any, description: str, *, backends: tuple[str, ...] = BACKENDS) -> Any:
    """Declare an option; a ``default`` of ``...`` makes it required."""
    extra: dict[str, Any] = {"backends": list(backends)}
    return Field(default, description=description, json_schema_extra=extra)


@dataclass(frozen=True)
class Former:
    """A key of earlier releases: the advice what to do today, and today's key if there is one."""

    key: str
    advice: str
    new: str = ""
    convert: Callable[[Any], Any] = lambda value: value


class Options(BaseModel):
    """Typed, frozen settings of one section of a configuration.

    Subclasses list fields with ``option`` and override ``rules`` (what must hold between
    fields) and ``remarks`` (what is legal but has no effect or looks like a slip). ``former``
    lists keys of earlier releases, which are read with a warning. ``adaptive`` says whether the
    loop that searches for the best compression rate can drive the algorithm; where that takes an
    option, ``adaptive_by`` shows it as JSON. ``role`` is what
    only one algorithm of a configuration can do, as a sentence without a subject ("decides which
    single weights are zero"); empty where nothing is in its way.
    """

    former: ClassVar[tuple[Former, ...]] = ()
    adaptive: ClassVar[bool] = False
    adaptive_by: ClassVar[str] = ""
    role: ClassVar[str] = ""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=False,
    )

    @classmethod
    def read(cls, data: Mapping[str, Any], *, path: str = "") -> Self:
        """Return validated options of ``data``.

        Raises ConfigError that lists everything wrong, each with its path below ``path``.
        """
        options, problems = cls.try_read(data, path=(path,) if path else ())
        raise_problems(problems)
        assert options is not None  # no problems means that there is a result
        return options

    @classmethod
    def try_read(
        cls, data: Any, *, path: tuple[Part, ...] = ()
    ) -> tuple[Self | None, list[Problem]]:
        """Return ``(options, [])`` or ``(None, problems)``."""
        try:
            return cls.model_validate(data), []
        except ValidationError as error:
            return None, translate(error, cls.model_json_schema(), data, path)

    @classmethod
    def modernize(cls, section: dict[str, Any], path: tuple[Part, ...]) -> Iterator[Problem]:
        """Translate what earlier releases wrote in ``section``, in place; yield the advice."""
        for old in cls.former:
            if old.key in section:
                value = section.pop(old.key)
                if old.new:
                    section.setdefault(old.new, old.convert(value))
                yield Problem((*path, old.key), f" is a key of earlier releases. {old.advice}")
        for name, field in cls.model_fields.items():
            inner, below = field.annotation, section.get(name)
            if isinstance(inner, type) and issubclass(inner, Options) and isinstance(below, dict):
                yield from inner.modernize(below, (*path, name))

    @classmethod
    def drop_unknown(cls, section: dict[str, Any], path: tuple[Part, ...]) -> Iterator[Problem]:
        """Drop unknown keys of a section that earlier releases left open; yield a note each."""
        for key in [key for key in section if key not in cls.model_fields]:
            del section[key]
            near = hint(str(key), cls.model_fields)
            yield Problem((*path, key), f" is not an option and does nothing.{near}")

    @property
    def is_adaptive(self) -> bool:
        """Whether the loop that searches for the best compression rate drives the algorithm."""
        return self.adaptive

    def rules(self) -> Iterator[Problem]:
        """Yield what is wrong between fields of this object."""
        yield from ()

    def remarks(self) -> Iterator[Problem]:
        """Yield what a reader of the file should know about it, without being an error."""
        yield from ()

    def all_remarks(self, path: tuple[Part, ...] = ()) -> Iterator[Problem]:
        """Yield the remarks of this object and of all sections inside, with full paths."""
        for remark in self.remarks():
            yield Problem((*path, *remark.path), remark.text)
        for name, section, many in self.sections():
            for index, item in enumerate(section):
                below = (*path, name, index) if many else (*path, name)
                yield from item.all_remarks(below)

    def sections(self) -> Iterator[tuple[str, tuple[Options, ...], bool]]:
        """Yield ``(key, the Options under it, whether the key holds a list)``."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Options):
                yield name, (value,), False
            elif isinstance(value, tuple) and value and isinstance(value[0], Options):
                yield name, value, True

    def has(self, *names: str) -> list[str]:
        """Return those of ``names`` that were written in the configuration."""
        return [name for name in names if name in self.model_fields_set]

    def no_effect(self, names: tuple[str, ...], unless: str) -> Iterator[Problem]:
        """Yield a remark for each of ``names`` that was written: it acts only with ``unless``."""
        for name in self.has(*names):
            yield Problem((name,), f" has no effect: it is read only with {unless}.")

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = list(self.rules())
        if broken:
            raise RulesBroken(broken)
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.is_required() or value != field.get_default(call_default_factory=True):
                yield name, value


def option_table(options: type[Options]) -> str:
    """Return all keys of ``options``, those of inner sections too, as a markdown table."""
    from nncf import option_tables

    return option_tables.option_table(options)
