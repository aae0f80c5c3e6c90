# SPDX-License-Identifier: Apache-2.0
"""Where every byte of an OpenVINO IR goes, read from the XML alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from nncf.compression.packed_tensor import element_count
from nncf.compression.sizes import Size, SizeTable
from nncf.errors import CheckpointError

_UNPACKING = ("Convert", "Gather", "Reshape", "StridedSlice", "Slice", "Add")
_FLOAT = 4  # bytes of an element of a weight that is not compressed


@dataclass(frozen=True)
class _Layer:
    """One layer: type, place of its data (of a Const), elements of its result, its readers.

    Readers are pairs of a layer and the number of its input; sources are the layers read, by the
    number of the input.
    """

    name: str
    kind: str
    data: Mapping[str, str]
    elements: int
    readers: list[tuple[_Layer, int]]
    sources: dict[int, _Layer]

    @property
    def place(self) -> tuple[int, int]:
        return int(self.data["offset"]), int(self.data["size"])


def size_table(path: str | Path) -> SizeTable:
    """Return the constants of an IR; the XML is the rest.

    Constants that share their bytes in the ``.bin`` take them once. Dense bytes are those of the
    float32 model: 4 for each element that is stored as a code, none for scales, bounds and
    tables. Raises CheckpointError when either file is missing or no IR.
    """
    path = Path(path)
    layers = _read(path)
    binary = path.with_suffix(".bin")
    try:
        nbytes = binary.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{path}: its weights, {binary}, cannot be read: {error.strerror}. Expected both files "
            "of the IR in one folder."
        ) from error
    rows, seen = [], set[tuple[int, int]]()
    for layer in layers.values():
        if layer.kind == "Const":
            first = layer.place not in seen
            seen.add(layer.place)
            rows.append(_row(layer, layer.place[1] if first else 0))
    unread = nbytes - sum(row.packed for row in rows)
    if unread:
        rows.append(Size("(not read)", (), "", 0, unread, "between constants"))
    return SizeTable(tuple(rows), path.stat().st_size, (path.name, "operations, names, shapes"))


def _read(path: Path) -> dict[str, _Layer]:
    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314  # a file that the user chose to open
        layers = {item.attrib["id"]: _layer(item) for item in root.iterfind("layers/layer")}
        for edge in root.iterfind("edges/edge"):
            source, reader = (layers[edge.attrib[f"{end}-layer"]] for end in ("from", "to"))
            port = int(edge.attrib["to-port"])
            source.readers.append((reader, port))
            reader.sources[port] = source
        if root.tag != "net" or not layers:
            raise ValueError("it has no layers")  # noqa: TRY301  # all that is wrong has one message
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}. Expected the .xml of an OpenVINO IR."
        ) from error
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: it is no OpenVINO IR: {error}. Expected a file as export_model writes it; "
            "copy or export it again."
        ) from error
    return layers


def _layer(item: ElementTree.Element) -> _Layer:
    data = item.find("data")
    attributes = {} if data is None else dict(data.attrib)
    if item.attrib["type"] == "Const":
        int(attributes["offset"]), int(attributes["size"])
    port = item.find("output/port")
    sizes = [int(dim.text or 0) for dim in (() if port is None else port.iterfind("dim"))]
    count = element_count(tuple(sizes))
    return _Layer(item.attrib["name"], item.attrib["type"], attributes, count, [], {})


def _row(layer: _Layer, stored: int) -> Size:
    dtype, text = layer.data.get("element_type", ""), layer.data.get("shape", "")
    shape = tuple(int(size) for size in text.split(",") if size.strip())
    role, elements = _role(layer)
    dense = layer.place[1] if role == "dense" else _FLOAT * elements
    return Size(layer.name, shape, dtype, dense if stored else 0, stored, role)


def _role(layer: _Layer) -> tuple[str, int]:
    """Return what a constant is, and how many elements of a weight it stands for.

    A weight is Multiply(Subtract(Convert(…codes…), zero point), scale); what makes the codes may
    be a Gather from a table, and an Add. That of a binary convolution is FakeQuantize(Convert(…)).
    """
    chain = list(_chain(layer)) or [(layer, 0)]
    first, (last, port) = chain[0][0], chain[-1]
    if last.kind == "FakeQuantize" and port > 0:
        return "bound", 0
    beside = [item.kind for item, n in chain[:-1] if n != (item.kind == "Gather")]
    if beside:  # read as a table, a shape, an offset
        integer = layer.data.get("element_type", "")[:1] in ("i", "u")
        return ("to unpack" if integer else "dense"), 0
    if last.kind == "Multiply" and port == 1 and last.sources[0].kind in ("Convert", "Subtract"):
        return "scale", 0
    if last.kind not in ("Subtract", "Multiply", "FakeQuantize") or first.kind != "Convert":
        return "dense", 0
    if port == 1:
        return "zero point", 0
    packed = any(item.kind == "Gather" for item, _ in chain)
    return ("packed codes" if packed else "codes"), chain[-2][0].elements


def _chain(layer: _Layer) -> Iterator[tuple[_Layer, int]]:
    """Yield the readers one after the other, up to the first that does more than to unpack.

    Each with the number of the input that is read.
    """
    while layer.readers:
        layer, port = layer.readers[0]
        yield layer, port
        if layer.kind not in _UNPACKING:
            return
