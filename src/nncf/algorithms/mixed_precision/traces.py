# SPDX-License-Identifier: Apache-2.0
"""Files of average Hessian traces: one number for each quantized weight."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nncf.compression.files import write_text
from nncf.errors import ConfigError

NAME = "traces_per_layer.json"
_KEY = "initializer.precision.traces_per_layer_path"


def write_traces(folder: Path, traces: Mapping[str, float]) -> Path:
    """Write ``{weight: trace}``; return the file's path."""
    write_text(folder / NAME, json.dumps(dict(traces), indent=2) + "\n")
    return folder / NAME


def read_traces(path: str, names: Sequence[str], load: Callable[[Path], Any]) -> dict[str, float]:
    """Return the trace of each weight.

    The file holds an object by name, or a list in the order of ``names`` (that of execution); a
    list within a list of one is taken out of it. Raises ConfigError unless it fits the weights.
    """
    expected = (
        f"Expected one number for each of the {len(names)} quantized weights, as {NAME} has them, "
        "which dump_init_precision_data writes: correct the path, or remove the key."
    )
    try:
        content = load(Path(path))
        while isinstance(content, list) and len(content) == 1 and isinstance(content[0], list):
            content = content[0]
        if isinstance(content, Mapping):
            found = {name: float(content[name]) for name in names}
        else:
            found = dict(zip(names, map(float, content), strict=True))
    except OSError as error:
        raise ConfigError(
            f'{_KEY} "{path}" cannot be read ({error.strerror}). {expected}'
        ) from error
    except KeyError as error:
        raise ConfigError(f'{_KEY} "{path}" has no trace of {error}. {expected}') from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f'{_KEY} "{path}" does not fit: {error}. {expected}') from error
    if not all(map(math.isfinite, found.values())):
        raise ConfigError(f'{_KEY} "{path}" holds NaN or infinity. {expected}')
    return found
