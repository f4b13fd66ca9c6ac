"""Point files: the points of a .npy, .ply or .off file, or the reason why not.

    .npy    one array [points, values], the first three values being x, y, z
    .ply    ascii or binary, vertices x, y, z with normals nx, ny, nz and colours red, green, blue where there are any
    .off    ascii, with or without normals and colours, which are not read

Of a mesh, whose corners say little about its shape, points are drawn on the surface, as many on every part as its area
asks for. Files come from anywhere: headers are checked before anything is read, and no object is unpickled.
"""

from collections.abc import Callable, Mapping
from os.path import exists
from pathlib import Path

import numpy as np

from deltatune.core.errors import DataError
from deltatune.core.mesh import Mesh, on_surface
from deltatune.core.npy_file import read_npy
from deltatune.core.off_file import read_off
from deltatune.core.ply_file import read_ply

LEAST_POINTS = 8
MOST_BYTES = 1 << 30
SURFACE = 4096
"""Points that are drawn on a mesh."""


def read_points(path: str | Path) -> np.ndarray:
    """The points of a file, [points, values] in float32 with at least x, y, z, in an order that follows from them.

    Raises `DataError` with a reason that begins alike for files that fail alike.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"shape is of no known kind ({path}): {', '.join(READERS)} are")
    _check_file(path)
    try:
        mesh = reader(path)
        points_NC = on_surface(mesh, SURFACE) if len(mesh.faces_F3) else mesh.points_NC
        with np.errstate(over="ignore"):  # infinite then, and said
            points_NC = points_NC.astype(np.float32)
    except (DataError, OSError, ValueError, OverflowError, EOFError) as error:
        reason = error.what if isinstance(error, DataError) else str(error).partition("\n")[0]
        raise DataError(f"shape cannot be read ({path}): {reason}") from None
    return _checked(points_NC, path)


def ordered(points_NC: np.ndarray) -> np.ndarray:
    """The points sorted by their values: whatever order they came in, they leave in the same one.

    >>> ordered(np.array([[1, 0], [0, 2], [0, 1]])).tolist()
    [[0, 1], [0, 2], [1, 0]]
    """
    found: np.ndarray = points_NC[np.lexsort(points_NC.T[::-1])]
    return found


READERS: Mapping[str, Callable[[Path], Mesh]] = {".npy": read_npy, ".ply": read_ply, ".off": read_off}


def _check_file(path: Path) -> None:
    if not exists(path):  # that of Path raises for a name no file can have
        raise DataError(f"shape is missing ({path})")
    if not path.is_file():
        raise DataError(f"shape is a folder ({path})" if path.is_dir() else f"shape is no regular file ({path})")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"shape file is empty ({path})")
    if size > MOST_BYTES:
        raise DataError(f"shape file is too large ({path}): {size:,} bytes, {MOST_BYTES:,} are the most")


def _checked(points_NC: np.ndarray, path: Path) -> np.ndarray:
    if len(points_NC) < LEAST_POINTS:
        raise DataError(f"shape has too few points ({path}): {len(points_NC)}, {LEAST_POINTS} are the least")
    if not np.isfinite(points_NC).all():
        raise DataError(f"shape has values that are not finite ({path})")
    if (points_NC[:, :3] == points_NC[0, :3]).all():
        raise DataError(f"shape is a single place ({path}): all of its {len(points_NC)} points are the same")
    return ordered(points_NC)
