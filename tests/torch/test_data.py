# SPDX-License-Identifier: Apache-2.0
"""From what loaders yield to the arguments of forward."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from nncf.errors import DataError
from nncf.resources import NNCFDataLoader
from nncf.torch.data import describe, forward_arguments, target_of

X, Y, Z = torch.zeros(2, 3), torch.ones(2), torch.full((2, 1), 2.0)


class Pair(NamedTuple):
    """A batch as a named tuple."""

    image: Any
    label: Any


@dataclass
class Record:
    """A batch as a dataclass."""

    mask: Any
    x: Any
    label: Any = None


class BatchEncoding(UserDict):
    """A mapping that is not a dict, like the batches of Hugging Face tokenizers."""


def model(forward: Callable[..., Any]) -> nn.Module:
    """Return a module with this forward (its first parameter is ``self``)."""
    return type("Model", (nn.Module,), {"forward": forward})()


def one(self, x): ...
def two(self, a, b): ...
def optional(self, x, mask=None): ...
def bert(self, input_ids=None, attention_mask=None, labels=None): ...
def anything(self, input_ids, **more): ...
def named_batch(self, batch): ...
def typed_dict(self, features: dict[str, Tensor]): ...
def typed_record(self, item: Record): ...
def typed_tensor(self, batched: Tensor | None, *, scale=1): ...
def keyword(self, x, *, mask): ...
def stars(self, *tensors): ...


@pytest.mark.parametrize(
    ("forward", "batch", "args", "kwargs"),
    [
        (one, X, (X,), {}),
        (one, (X, Y), (X,), {}),
        (one, [X, Y], (X,), {}),
        (one, (X,), (X,), {}),
        (one, (X, Y, Z), (X,), {}),
        (one, ([X, X], Y), ([X, X],), {}),
        (one, Pair(X, Y), (X,), {}),
        (one, {"image": X, "label": Y}, (X,), {}),
        (one, {"pixels": X, "labels": Y, "idx": Z, "name": "cat"}, (X,), {}),
        (one, {"x": X, "y": Y}, (), {"x": X}),
        (optional, (X, Y), (X,), {}),
        (optional, (X, {"mask": Y}), (X,), {"mask": Y}),
        (optional, (X, {"boxes": Y}), (X,), {}),
        (optional, (X, {}), (X,), {}),
        (optional, {"x": X, "mask": Y, "label": Z}, (), {"x": X, "mask": Y}),
        (optional, Record(Y, X, Z), (), {"x": X, "mask": Y}),
        (optional, (Record(Y, X), Z), (), {"x": X, "mask": Y}),
        (two, (X, Y), (X, Y), {}),
        (two, (X, Y, Z), (X, Y), {}),
        (two, ((X, Y), Z), (X, Y), {}),
        (two, {"a": X, "b": Y, "c": Z}, (), {"a": X, "b": Y}),
        (two, ({"a": X, "b": Y}, Z), (), {"a": X, "b": Y}),
        (two, (X, {"b": Y}), (X,), {"b": Y}),
        (bert, {"input_ids": X, "labels": Y, "id": Z}, (), {"input_ids": X, "labels": Y}),
        (bert, BatchEncoding(input_ids=X, label=Y), (), {"input_ids": X}),
        (bert, [{"input_ids": X}, Y], (), {"input_ids": X}),
        (anything, {"input_ids": X, "bias": Z, "labels": Y}, (), {"input_ids": X, "bias": Z}),
        (named_batch, {"image": X, "other": Z}, ({"image": X, "other": Z},), {}),
        (named_batch, [{"image": X}, {"image": Y}], ([{"image": X}, {"image": Y}],), {}),
        (typed_dict, {"image": X, "other": Z}, ({"image": X, "other": Z},), {}),
        (typed_dict, ({"image": X, "other": Z}, Y), ({"image": X, "other": Z},), {}),
        (typed_record, Record(Y, X), (Record(Y, X),), {}),
        (typed_tensor, (X, Y), (X,), {}),
        (keyword, {"x": X, "mask": Y}, (), {"x": X, "mask": Y}),
        (keyword, (X, {"mask": Y}), (X,), {"mask": Y}),
        (stars, (X, Y), (X,), {}),
    ],
)
def test_usual_batches_become_arguments(
    forward: Callable[..., Any], batch: Any, args: Any, kwargs: Any
) -> None:
    """Every usual form of batch gives the arguments that the signature asks for."""
    found = forward_arguments(batch, model(forward))
    assert repr(found) == repr((args, kwargs))


@pytest.mark.parametrize(
    ("forward", "batch"),
    [
        (two, X),
        (two, (X,)),
        (two, {"a": X, "c": Y}),
        (one, {"left": X, "right": Y}),
        (one, "text"),
        (one, None),
        (one, ()),
        (one, {"label": Y}),
        (optional, (X, Y, Z)),
        (bert, [{"input_ids": X}, {"input_ids": Y}]),
        (keyword, (X, Y)),
        (keyword, X),
    ],
)
def test_what_cannot_be_told_is_an_error_that_shows_the_way(
    forward: Callable[..., Any], batch: Any
) -> None:
    """An ambiguous batch is shown with the signature and a loader class that can be pasted."""
    with pytest.raises(DataError) as caught:
        forward_arguments(batch, model(forward))
    text = str(caught.value)
    assert describe(batch) in text
    code = text[text.index("from nncf") : text.index("Then pass")].replace(
        "from nncf ", "from nncf.resources "
    )
    room: dict[str, Any] = {}
    exec(code, room)
    loader = room["CalibrationLoader"]([batch])
    assert loader.batch_size >= 1
    if isinstance(batch, (tuple, dict)) and len(batch) >= 2:
        args, kwargs = forward_arguments(next(iter(loader)), model(forward), loader=loader)
        assert len(args) == 1
        assert set(kwargs) <= {"b", "mask"}


def test_a_pasted_class_gives_tensors_to_needed_parameters() -> None:
    """The proposed loader hands the tensors of the batch over in order."""
    with pytest.raises(DataError, match=r"yield batch\['a'\], \{\"b\": batch\['c'\]\[0\]\}"):
        forward_arguments({"a": X, "c": [Y]}, model(two))


def test_a_described_batch_shows_types_and_shapes() -> None:
    """Structures are shown with types, shapes and names, long ones cut."""
    text = describe(({"image": X, "name": "cat"}, list(range(20))))
    assert text.splitlines()[:4] == [
        "  tuple of 2",
        "    [0] dict of 2",
        "      'image': Tensor float32 (2, 3)",
        "      'name': str",
    ]
    assert text.endswith("… 8 more")


class Protocol(NNCFDataLoader):
    """Yields what it is given."""

    batch_size = 2

    def __init__(self, item: Any) -> None:
        self.item = item

    def __iter__(self):
        yield self.item


@pytest.mark.parametrize(
    ("item", "args", "kwargs"),
    [
        ((X, {"scale": Y}), (X,), {"scale": Y}),
        ((X, {}), (X,), {}),
        (((X, Y), {}), (X, Y), {}),
        (({"a": X}, {"scale": Y}), ({"a": X},), {"scale": Y}),
        ((X, Y), (X,), {}),
    ],
)
def test_an_nncf_data_loader_is_believed(item: Any, args: Any, kwargs: Any) -> None:
    """What an NNCFDataLoader yields is (input, keywords), whatever the signature says."""
    found = forward_arguments(item, model(stars), loader=Protocol(item))
    assert repr(found) == repr((args, kwargs))


def test_loaders_of_earlier_releases_are_asked() -> None:
    """A loader with get_inputs and get_target decides itself."""
    from nncf.torch.initialization import PTInitializingDataLoader

    class Loader(PTInitializingDataLoader):
        def get_inputs(self, dataloader_output: Any) -> Any:
            return (dataloader_output["q"],), {"mask": dataloader_output["m"]}

        def get_target(self, dataloader_output: Any) -> Any:
            return dataloader_output["t"]

    batch = {"q": X, "m": Y, "t": Z}
    loader = Loader([batch])
    assert len(loader) == 1
    (item,) = loader
    assert forward_arguments(item, model(one), loader=loader) == ((X,), {"mask": Y})
    assert target_of(item, model(one), loader=loader) is Z
    assert PTInitializingDataLoader([(X, Y)]).get_inputs((X, Y)) == ((X,), {})
    assert PTInitializingDataLoader([(X, Y)]).get_target((X, Y)) is Y


def test_signatures_are_read_through_wrappers() -> None:
    """DataParallel and compiled models are asked for the forward inside."""
    inner = model(two)
    assert forward_arguments((X, Y), nn.DataParallel(inner)) == ((X, Y), {})
    assert forward_arguments((X, Y), torch.compile(inner)) == ((X, Y), {})


def test_a_packed_sequence_is_one_argument() -> None:
    """A packed sequence is a value, not a tuple of tensors."""
    packed = pack_sequence([torch.zeros(3), torch.zeros(2)])
    assert forward_arguments((packed, Y), model(one)) == ((packed,), {})
    assert forward_arguments(packed, model(one)) == ((packed,), {})


def test_an_object_is_passed_whole() -> None:
    """A batch of a class of its own goes to a model that takes one thing."""
    thing = object()
    assert forward_arguments(thing, model(one)) == ((thing,), {})


@pytest.mark.parametrize(
    ("forward", "batch", "target"),
    [
        (one, (X, Y), Y),
        (two, (X, Y, Z), Z),
        (one, {"x": X, "labels": Y}, Y),
        (one, (X, Y, Z), [Y, Z]),
        (optional, Record(Y, X, Z), Z),
    ],
)
def test_the_target_is_what_forward_leaves(
    forward: Callable[..., Any], batch: Any, target: Any
) -> None:
    """Targets are the second of a pair, the rest of a sequence, or the value named so."""
    assert repr(target_of(batch, model(forward))) == repr(target)


def test_a_batch_without_target_is_an_error() -> None:
    """A batch of inputs alone is shown."""
    with pytest.raises(DataError, match="No target was found"):
        target_of({"x": X}, model(one))
