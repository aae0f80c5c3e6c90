# SPDX-License-Identifier: Apache-2.0
"""From what a data loader yields to the arguments of a model's forward.

Decided by the signature of ``forward``, never by trying:

| batch | forward | arguments |
|---|---|---|
| ``x`` | any | ``x`` |
| ``(x, y)``, ``(x, y, z)`` | needs n arguments | the first n; ``y`` is the target |
| ``((a, b), y)`` | needs two | ``a, b`` |
| ``(x, {"mask": m})`` | has a parameter ``mask`` | ``x, mask=m`` |
| dict, Hugging Face batch, dataclass, namedtuple | has parameters of these names | by name |
| the same | one parameter, of this type or called ``batch``… | the whole |
| ``{"image": x, "label": y}`` | one parameter | ``x``, the only tensor that is no target |
| list of dicts (one per sample) | one parameter | the list |

Loaders may say it themselves: an ``NNCFDataLoader`` yields ``(x, keyword arguments)``; a loader
with the methods ``get_inputs`` and ``get_target`` of earlier releases is asked.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, get_origin

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nncf.errors import DataError
from nncf.resources import NNCFDataLoader
from nncf.torch.structure import tensors_in

TARGET_NAMES = frozenset(
    ["label", "labels", "label_ids", "target", "targets", "y", "class", "classes", "class_id"]
    + ["annotation", "annotations", "ground_truth", "gt"]
)
"""Names under which batches hold what the model is to learn."""
RECORD_NAMES = frozenset(["id", "ids", "idx", "index", "image_id", "image_ids"])
"""Names under which batches say which samples they hold."""
BATCH_NAMES = frozenset(
    ["batch", "batches", "batched_inputs", "batch_data", "batch_inputs", "sample", "samples"]
)
"""Names of parameters that take a batch as it is."""

_PARTS_SHOWN = 12

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def forward_arguments(batch: Any, model: nn.Module, *, loader: Any = None) -> Arguments:
    """Return ``(args, kwargs)`` such that ``model(*args, **kwargs)`` runs the batch.

    ``loader`` is where the batch comes from, asked when it knows the answer. Raises DataError
    that shows the batch and how to write an NNCFDataLoader when the answer cannot be told.
    """
    if callable(getattr(loader, "get_inputs", None)):
        args, kwargs = loader.get_inputs(batch)
        return tuple(args), dict(kwargs)
    if isinstance(loader, NNCFDataLoader) and _is_pair(batch) and isinstance(batch[1], Mapping):
        first = batch[0]
        return (first if type(first) is tuple else (first,)), dict(batch[1])
    found = _arguments(batch, Parameters.of(model))
    if found is None:
        raise DataError(
            "The forward arguments cannot be told from the data. " + how_to_tell(batch, model)
        )
    return found


def target_of(batch: Any, model: nn.Module, *, loader: Any = None) -> Any:
    """Return the target in a batch, what ``forward_arguments`` leaves, for a criterion.

    The second of a pair, the list of what follows the arguments in a longer sequence, the value
    under a name such as "labels" in a mapping. Raises DataError when there is none.
    """
    if callable(getattr(loader, "get_target", None)):
        return loader.get_target(batch)
    fields = _fields(batch)
    if fields is not None:
        names = [name for name in fields if name in TARGET_NAMES]
        if names:
            return fields[names[0]]
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        taken = max(len(Parameters.of(model).required), 1)
        rest = batch[taken:] if taken < len(batch) else batch[-1:]
        return rest[0] if len(rest) == 1 else list(rest)
    raise DataError(
        f"No target was found in a batch of the loader:\n{describe(batch)}\n"
        "Expected (inputs, target), or a dict with a key such as 'labels' or 'target'."
    )


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What a forward takes: names in order, which of them it needs, whether any name will do."""

    positional: tuple[str, ...]
    required: tuple[str, ...]
    keyword_only: tuple[str, ...]
    needed_keywords: tuple[str, ...]
    any_keyword: bool
    annotation: Any

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        """Read the signature of a model's forward, through wrappers that hide it."""
        model = getattr(model, "_orig_mod", model)  # what torch.compile returns
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        try:
            signature = inspect.signature(model.forward, eval_str=True)
        except (NameError, TypeError, SyntaxError, AttributeError):  # annotations as text
            signature = inspect.signature(model.forward)
        every = signature.parameters.values()
        positional = [p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        keyword_only = [p for p in every if p.kind is p.KEYWORD_ONLY]
        return cls(
            positional=tuple(p.name for p in positional),
            required=tuple(p.name for p in positional if p.default is p.empty),
            keyword_only=tuple(p.name for p in keyword_only),
            needed_keywords=tuple(p.name for p in keyword_only if p.default is p.empty),
            any_keyword=any(p.kind is p.VAR_KEYWORD for p in every),
            annotation=positional[0].annotation if positional else None,
        )

    @property
    def names(self) -> tuple[str, ...]:
        return self.positional + self.keyword_only

    @property
    def needed(self) -> frozenset[str]:
        """Names without a default."""
        return frozenset(self.required + self.needed_keywords)

    @property
    def takes_one(self) -> bool:
        """Whether a call with one positional argument is complete."""
        return len(self.required) <= 1 and not self.needed_keywords


def _arguments(batch: Any, parameters: Parameters) -> Arguments | None:
    if parameters.takes_one and _is_meant(batch, parameters.annotation):
        return (batch,), {}
    fields = _fields(batch)
    if fields is not None:
        return _from_fields(batch, fields, parameters)
    if isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence):
        return _from_sequence(batch, parameters)
    if batch is None or isinstance(batch, (str, bytes, int, float)) or not parameters.takes_one:
        return None
    return (batch,), {}


def _from_fields(batch: Any, fields: Mapping[str, Any], parameters: Parameters) -> Arguments | None:
    named = {name: fields[name] for name in parameters.names if name in fields}
    if named and parameters.needed <= named.keys():
        if parameters.any_keyword:
            rest = {str(k): v for k, v in fields.items() if k not in TARGET_NAMES | RECORD_NAMES}
            named = rest | named
        return (), named
    if not parameters.takes_one:
        return None
    if parameters.positional and parameters.positional[0] in BATCH_NAMES:
        return (batch,), {}
    tensors = [name for name, value in fields.items() if isinstance(value, Tensor)]
    inputs = [name for name in tensors if name not in TARGET_NAMES | RECORD_NAMES]
    return ((fields[inputs[0]],), {}) if len(inputs) == 1 else None


def _from_sequence(batch: Sequence[Any], parameters: Parameters) -> Arguments | None:
    if not batch:
        return None
    first = batch[0]
    if _is_pair(batch) and isinstance(batch[1], Mapping) and batch[1]:
        others = {*parameters.names} - {*parameters.positional[:1]}
        if parameters.needed & others <= batch[1].keys() <= others:
            return (first,), dict(batch[1])
    if all(isinstance(item, Mapping) and item.keys() == first.keys() for item in batch):
        # One dict per sample: not for a forward that takes their values by name.
        one = parameters.takes_one and not {*parameters.names} & first.keys()
        return ((list(batch),), {}) if one else None
    if _fields(first) is not None:
        return _arguments(first, parameters)
    values = _positional(batch, parameters)
    return None if values is None or parameters.needed_keywords else (values, {})


def _positional(batch: Sequence[Any], parameters: Parameters) -> tuple[Any, ...] | None:
    first, count = batch[0], len(parameters.required)
    if count >= 2:
        nested = isinstance(first, (tuple, list)) and len(first) == count
        values = tuple(first if nested else batch[:count])
        return values if len(values) == count else None
    # Of (a, b, c) the second may be an argument or a target, if forward takes more than one.
    return None if len(batch) > 2 and len(parameters.positional) > 1 else (first,)


def _fields(batch: Any) -> Mapping[str, Any] | None:
    """Return the named parts of a batch, None when its parts have no names."""
    if isinstance(batch, Mapping):
        return batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        return None if isinstance(batch, PackedSequence) else batch._asdict()
    return None


def _is_meant(batch: Any, annotation: Any) -> bool:
    """Tell whether the annotation of forward's first parameter is the type of the whole batch."""
    kind = get_origin(annotation) or annotation
    if not isinstance(kind, type) or kind is object or type(batch) in (tuple, list):
        return False  # a tuple or list usually has the target inside
    return isinstance(batch, kind)


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


# ---------------------------------------------------------------------- telling what came


def describe(value: Any, *, indent: str = "  ", label: str = "") -> str:
    """Return the structure of a batch as text: types and shapes, one line per part."""
    if isinstance(value, Tensor):
        return f"{indent}{label}Tensor {str(value.dtype)[6:]} {tuple(value.shape)}"
    fields = _fields(value)
    if fields is not None:
        parts = [(f"{name!r}: ", item) for name, item in fields.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"[{index}] ", item) for index, item in enumerate(value)]
    else:
        shape = getattr(value, "shape", None)
        return f"{indent}{label}{type(value).__name__}" + (f" {tuple(shape)}" if shape else "")
    lines = [f"{indent}{label}{type(value).__name__} of {len(parts)}"]
    shown = parts[:_PARTS_SHOWN]
    lines.extend(describe(item, indent=indent + "  ", label=name) for name, item in shown)
    if len(parts) > len(shown):
        lines.append(f"{indent}  … {len(parts) - len(shown)} more")
    return "\n".join(lines)


def how_to_tell(batch: Any, model: nn.Module) -> str:
    """Return what came, what the forward takes, and a loader class that joins them, as text."""
    parameters = Parameters.of(model)
    signature = [n if n in parameters.needed else f"{n}=…" for n in parameters.names]
    first = next(tensors_in(batch), None)
    size = len(first) if first is not None and first.ndim else 1
    place, *others = [*_tensor_places(batch, "batch")] or ["batch"]
    needed = [name for name in parameters.names if name in parameters.needed][1:]
    keywords = [f'"{n}": {value}' for n, value in zip_longest(needed, others[: len(needed)])]
    return (
        f"The data loader yields\n{describe(batch)}\n"
        f"and the model takes {type(model).__name__}.forward({', '.join(signature)}). "
        "Batches like (inputs, target), or dicts with the names of these parameters, are "
        "understood. For all others write a loader such as this one, correcting its last line:\n\n"
        "from nncf import NNCFDataLoader\n\n"
        "class CalibrationLoader(NNCFDataLoader):\n"
        "    def __init__(self, loader):\n"
        "        self.loader = loader\n\n"
        "    @property\n"
        "    def batch_size(self):\n"
        f"        return {size}\n\n"
        "    def __iter__(self):\n"
        "        for batch in self.loader:\n"
        "            # the first argument, then the others by name\n"
        f"            yield {place}, {{{', '.join(keywords)}}}\n\n"
        "Then pass CalibrationLoader(train_loader) to register_default_init_args."
    )


def _tensor_places(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield place
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _tensor_places(item, f"{place}[{name!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensor_places(item, f"{place}[{index}]")
    else:
        for name, item in (_fields(value) or {}).items():
            yield from _tensor_places(item, f"{place}.{name}")
