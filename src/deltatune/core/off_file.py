"""OFF files: corners and faces of a mesh as text (Geomview's Object File Format; ModelNet's files)."""

import re
from pathlib import Path

from deltatune.core.errors import DataError
from deltatune.core.mesh import Mesh, check_count, numbers, triangles

HEADER = re.compile(r"(?:ST)?C?N?OFF(?P<rest>.*)")
"""Textures, colours and normals are not read; ModelNet has files with the counts in the line of the header."""


def read_off(path: Path) -> Mesh:
    """The mesh of a file, or its points where it has no faces; raises `DataError` for what is not OFF as text."""
    text = path.read_bytes().decode("latin-1")
    lines = [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]
    header = HEADER.fullmatch(lines[0]) if lines else None
    if header is None:
        raise DataError("its first line is not OFF")
    if "BINARY" in header["rest"]:
        raise DataError("binary OFF is not known; save it as text, or as .ply")
    if header["rest"].strip():
        lines[0] = header["rest"]
    else:
        del lines[0]
    counts = lines[0].split() if lines else []
    if len(counts) < 2 or not all(count.isdecimal() for count in counts):
        raise DataError(f"the numbers of points and faces are missing ({lines[0][:40] if lines else ''!r})")
    points, faces = int(counts[0]), int(counts[1])
    check_count(points, "points")
    check_count(faces, "faces")
    if len(lines) < 1 + points + faces:
        raise DataError(
            f"it ends early: {points} points and {faces} faces are announced, {len(lines) - 1} lines follow"
        )
    places = numbers([line.split() for line in lines[1 : 1 + points]], 3)
    polygons = [_corners(line) for line in lines[1 + points : 1 + points + faces]]
    return Mesh(places, triangles(polygons, points))


def _corners(line: str) -> list[int]:
    """Indices of a face, without its colour."""
    words = line.split()
    corners = int(words[0])
    if not 0 <= corners < len(words):
        raise DataError(f"a face of {corners} corners names {len(words) - 1}")
    return [int(word) for word in words[1 : 1 + corners]]
