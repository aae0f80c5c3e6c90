# SPDX-License-Identifier: Apache-2.0
"""NNCFConfig: the dict of a configuration file, its typed options and the user's loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from nncf.config.reading import KNOWN_KEYS, Reading, plain, read_file, read_options
from nncf.config.root import RootOptions
from nncf.config.schema import config_schema
from nncf.errors import ConfigError
from nncf.logging import nncf_logger
from nncf.option_messages import value_text
from nncf.resources import Resources

Struct = TypeVar("Struct")


class NNCFConfig(dict[str, Any]):
    """A configuration: a dict, as written by the user, with keys of the training script.

    ``from_json`` and ``from_dict`` check it; a config that is changed afterwards is checked
    again when ``options`` is next read. Copies and pickles keep the dict and the registered
    resources; a deep copy shares the loaders among the resources.
    """

    resources: Resources

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        origin = args[0] if args and isinstance(args[0], NNCFConfig) else None
        self.resources = Resources(origin.resources if origin is not None else ())
        self._source: str = getattr(origin, "_source", "")
        self._reading: tuple[dict[str, Any], Reading] | None = None

    @classmethod
    def from_dict(cls, nncf_dict: Mapping[str, Any]) -> Self:
        """Return a checked configuration with its own copy of the dict.

        Raises ConfigError that lists everything wrong, each with its JSON path.
        """
        if not isinstance(nncf_dict, Mapping):
            raise ConfigError(f"expected a dict, found {value_text(nncf_dict)}.")
        config = cls(plain(nncf_dict))
        if isinstance(nncf_dict, NNCFConfig):
            config.resources.register(nncf_dict.resources)
        _ = config.options
        return config

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Return the checked configuration of a JSON file (comments, trailing commas allowed).

        Raises ConfigError with the line when the file is not JSON, with JSON paths when its
        contents are wrong.
        """
        config = cls(read_file(path))
        config._source = str(path)
        _ = config.options
        return config

    @property
    def options(self) -> RootOptions:
        """The typed, frozen, checked view of the configuration as it is now."""
        now = {key: plain(self[key]) for key in self if key in KNOWN_KEYS}
        if self._reading is None or self._reading[0] != now:
            reading = read_options(self, source=self._source)
            for remark in reading.remarks:
                nncf_logger.warning("%s", remark)
            self._reading = (now, reading)
        return self._reading[1].root

    @staticmethod
    def schema() -> dict[str, Any]:
        """Return the JSON schema of configurations."""
        return config_schema()

    @staticmethod
    def validate(loaded_json: Mapping[str, Any]) -> None:
        """Raise ConfigError if ``loaded_json`` is not a valid configuration."""
        read_options(loaded_json)

    def register_extra_structs(self, struct_list: Iterable[object]) -> None:
        """Register objects that initialisation needs; one of the same class is replaced."""
        self.resources.register(struct_list)

    def get_extra_struct(self, struct_cls: type[Struct]) -> Struct:
        """Return the registered object of a class. Raises KeyError when there is none."""
        found = self.resources.get(struct_cls)
        if found is None:
            raise KeyError(
                f"no {struct_cls.__name__} is registered; call register_default_init_args "
                "or register_extra_structs first"
            )
        return found

    def has_extra_struct(self, struct_cls: type) -> bool:
        """Return whether an object of this class is registered."""
        return struct_cls in self.resources

    def get_all_extra_structs_for_copy(self) -> list[object]:
        """Return all registered objects."""
        return list(self.resources)

    def get_redefinable_global_param_value_for_algo(self, param_name: str, algo_name: str) -> Any:
        """Return an option of an algorithm, or else the one of the top level, or None."""
        for section in (self.options.algorithm(algo_name), self.options):
            value = getattr(section, param_name, None)
            if value is not None:
                return value
        return None

    def copy(self) -> Self:
        """Return a shallow copy that keeps the resources."""
        return type(self)(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reading": None}
