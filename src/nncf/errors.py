# SPDX-License-Identifier: Apache-2.0
"""Every error that nncf raises on purpose.

A message says three things: what happened and where, what was expected, how to fix it.
Each class also derives from the built-in exception that callers of the documented interface
catch, so ``except RuntimeError`` written for earlier releases keeps working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NNCFError(Exception):
    """Root of all errors raised by nncf itself."""


class ConfigError(NNCFError, ValueError):
    """The configuration is wrong; the message starts with the JSON path of the culprit."""


class ScopeNotFound(NNCFError, RuntimeError):
    """A scope in the configuration matches no operation of the model."""


class DataError(NNCFError, RuntimeError, ValueError):
    """Calibration data is missing, unusable or contains NaN or infinity."""


class LevelError(NNCFError, AttributeError, ValueError):
    """A sparsity level, or a rate of compression, is out of reach."""


class ModelError(NNCFError, RuntimeError):
    """The model cannot be compressed as it is (already compressed, wrong inputs…)."""


class CheckpointError(NNCFError, RuntimeError):
    """A checkpoint does not belong to this model, or is damaged."""


class TrainingError(NNCFError, RuntimeError, TypeError, ValueError):
    """A function that an accuracy-aware loop was given does not do what the loop needs."""


class ExportError(NNCFError, RuntimeError):
    """The compressed model cannot be written in the form asked for."""


class ParityError(ExportError):
    """The deployed file does not compute what the trained model computes."""


class UnsupportedFormat(ExportError, ValueError):
    """The save format, or the ending of the file's name, is not one that can be written."""


class MissingDependency(NNCFError, ImportError):
    """An optional package is needed; the message names the pip command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install {package}. All that belongs to it, from a checkout of "
            f"nncf: pip install '.[{extra}]'"
        )


class NotCompressed(NNCFError, ValueError):
    """An operation that needs a compressed model was given a plain one."""


def nearest(word: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` candidates that look like ``word``, best first (for hints)."""
    return difflib.get_close_matches(word, list(dict.fromkeys(candidates)), n=count, cutoff=0.4)


def hint(word: str, candidates: Iterable[str]) -> str:
    """Return `` Nearest: "a", "b".`` or an empty string when nothing is close."""
    close = nearest(word, candidates)
    return " Nearest: " + ", ".join(f'"{item}"' for item in close) + "." if close else ""
