"""PLY files: corners and faces of a mesh, or a cloud, as text or binary in either order of bytes (Stanford's format).

A header names elements (`vertex`, `face` and any others) with their properties: numbers, or lists of numbers with
their length in front. Read are x, y, z, nx, ny, nz, red, green, blue of `vertex`, colours as shares of their largest
value, and the corners of `face`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from deltatune.core.errors import DataError
from deltatune.core.mesh import Mesh, check_count, numbers, triangles

TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
BYTES: Mapping[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
VALUES = (("x", "y", "z"), ("nx", "ny", "nz"), ("red", "green", "blue"))
"""Read where all three are there."""
CORNERS = ("vertex_indices", "vertex_index")
MOST_HEADER = 1 << 16
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Property:
    """A number, or a list of numbers with its length in front."""

    name: str
    kind: str
    """numpy's code of its type."""
    length: str | None = None
    """That of the length, of a list."""


@dataclass(frozen=True, slots=True)
class Element:
    """Rows of properties."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def lists(self) -> list[Property]:
        """The properties that are lists."""
        return [each for each in self.properties if each.length is not None]


def read_ply(path: Path) -> Mesh:
    """The mesh of a file, or its points where it has no faces; raises `DataError` for what is none."""
    raw = path.read_bytes()
    order, elements, start = _header(raw)
    rows = _text_rows(raw[start:], elements) if not order else _binary_rows(raw, start, elements, order)
    vertices = polygons = None
    for element, table, corners in rows:
        if element.name == "vertex":
            vertices = _values(element, table)
        elif element.name == "face":
            polygons = corners
    if vertices is None:
        raise DataError("it has no element vertex")
    return Mesh(vertices, triangles(polygons if polygons is not None else [], len(vertices)))


def _header(raw: bytes) -> tuple[str, list[Element], int]:
    """Order of bytes ("" for text), the elements, and where they begin."""
    end = raw[:MOST_HEADER].find(b"end_header")
    stop = raw.find(b"\n", end) + 1
    if not raw.startswith(b"ply") or end < 0 or not stop:
        raise DataError("it has no header of a PLY file")
    order: str | None = None
    elements: list[Element] = []
    for line in raw[:end].decode("latin-1").splitlines()[1:]:
        match line.split():
            case ["comment" | "obj_info", *_] | []:
                pass
            case ["format", kind, _] if kind in ORDERS:
                order = ORDERS[kind]
            case ["element", name, count] if count.isdecimal():
                check_count(int(count), f"rows of {name}")
                elements.append(Element(name, int(count)))
            case ["property", *words] if elements:
                elements[-1].properties.append(_property(words))
            case _:
                raise DataError(f"a line of its header is not known ({line[:60]!r})")
    if order is None:
        raise DataError("its header names no format")
    if any(element.name == "vertex" and element.lists for element in elements):
        raise DataError("its vertices have lists, which are not read")
    return order, elements, stop


def _property(words: Sequence[str]) -> Property:
    match words:
        case ["list", length, kind, name] if kind in TYPES and TYPES.get(length, "f4")[0] != "f":
            return Property(name, TYPES[kind], TYPES[length])
        case [kind, name] if kind in TYPES:
            return Property(name, TYPES[kind])
    raise DataError(f"a property of its header is not known ({' '.join(words)[:60]!r})")


Polygons = Sequence[Sequence[int]] | np.ndarray
Rows = Iterator[tuple[Element, np.ndarray, Polygons]]
"""An element, its numbers [rows, properties], and the corners of its faces."""


def _text_rows(raw: bytes, elements: Sequence[Element]) -> Rows:
    lines = [line for line in raw.decode("latin-1").splitlines() if line.strip()]
    start = 0
    for element in elements:
        own = [line.split() for line in lines[start : start + element.count]]
        start += element.count
        if len(own) < element.count:
            raise DataError(f"it ends early: {len(own)} of {element.count} rows of {element.name} are there")
        if element.name == "face":
            yield element, np.zeros((element.count, 0)), [_corners(words, element) for words in own]
        elif element.name == "vertex":
            yield element, numbers(own, len(element.properties)), []


def _corners(words: Sequence[str], element: Element) -> list[int]:
    """Indices of a face in a row of text."""
    place, found = 0, None
    for each in element.properties:
        count = 1 if each.length is None else int(words[place]) if place < len(words) else 1
        place += each.length is not None
        own = words[place : place + count]
        if count < 0 or len(own) < count:
            raise DataError(f"a row of face has fewer numbers than it announces ({' '.join(words)[:40]!r})")
        found = own if each.name in CORNERS else found
        place += count
    if found is None:
        raise DataError(f"its faces have no property {CORNERS[0]}")
    return [int(word) for word in found]


def _binary_rows(raw: bytes, start: int, elements: Sequence[Element], order: str) -> Rows:
    for element in elements:
        least = sum(int((each.length or each.kind)[1]) for each in element.properties)
        if element.count * least > len(raw) - start:
            raise DataError(f"it ends early: {element.count} rows of {element.name} are announced")
        if element.lists:
            polygons, start = _lists(raw, start, element, order)
            yield element, np.zeros((element.count, 0)), polygons
        else:
            kinds = np.dtype([(each.name, order + each.kind) for each in element.properties])
            table = np.frombuffer(raw, kinds, element.count, start)
            start += element.count * kinds.itemsize
            if element.name == "vertex":
                yield element, np.stack([table[each.name] for each in element.properties], 1), []


def _lists(raw: bytes, start: int, element: Element, order: str) -> tuple[Polygons, int]:
    """The corners of every row, and where the rows end."""
    corners = next((each for each in element.lists if each.name in CORNERS), None)
    if element.name == "face" and corners is None:
        raise DataError(f"its faces have no property {CORNERS[0]}")
    if corners is not None and element.properties == [corners] and element.count:
        polygons = _alike(raw[start:], element.count, order + str(corners.length), order + corners.kind)
        if polygons is not None:
            return polygons[0], start + polygons[1]
    return _one_by_one(raw, start, element, order, corners)


def _alike(raw: bytes, count: int, length: str, kind: str) -> tuple[Polygons, int] | None:
    """The corners of rows of one length, and their bytes; None where the lengths differ."""
    corners = int(np.frombuffer(raw, length, 1)[0])
    row = np.dtype([("length", length), ("corners", kind, (max(0, corners),))])
    if count * row.itemsize > len(raw):
        return None
    table = np.frombuffer(raw, row, count)
    return (table["corners"].astype(np.int64), count * row.itemsize) if (table["length"] == corners).all() else None


def _one_by_one(raw: bytes, start: int, element: Element, order: str, corners: Property | None) -> tuple[Polygons, int]:
    polygons = []
    for _ in range(element.count):
        for each in element.properties:
            count = 1
            if each.length is not None:
                size = int(each.length[1])
                count = int.from_bytes(raw[start : start + size], BYTES[order], signed=each.length[0] == "i")
                start += size
            end = start + count * int(each.kind[1])
            if not start <= end <= len(raw):
                raise DataError(f"it ends early, or a list of {element.name} has {count} numbers")
            if each is corners:
                polygons.append(np.frombuffer(raw[start:end], order + each.kind).tolist())
            start = end
    return polygons, start


def _values(element: Element, numbers: np.ndarray) -> np.ndarray:
    """Places, normals and colours [points, values]; raises `DataError` where the places are missing."""
    columns = {each.name: index for index, each in enumerate(element.properties)}
    if numbers.ndim != 2 or not columns.keys() >= set(VALUES[0]):
        raise DataError(f"its vertices have no x, y and z ({', '.join(columns)})")
    triples = [triple for triple in VALUES if columns.keys() >= set(triple)]
    scales = [_largest(element.properties[columns[name]]) for triple in triples for name in triple]
    chosen = numbers[:, [columns[name] for triple in triples for name in triple]]
    found: np.ndarray = chosen.astype(np.float64) / scales
    return found


def _largest(each: Property) -> float:
    """What a value is divided by: the largest one of a colour that is a whole number."""
    return float(np.iinfo(each.kind).max) if each.name in VALUES[2] and each.kind[0] in "iu" else 1.0
