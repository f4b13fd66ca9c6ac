"""Point glance: what is remembered of a file of points that was read once, a few kilobytes.

Rows are checked more than once and compared with each other before any is encoded; a glance answers all of it.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deltatune.core.errors import DataError
from deltatune.core.point_cloud import in_unit
from deltatune.core.point_files import read_points

COARSE, FINE = 8, 24
"""Cells a side of the grids around the unit sphere."""
REMEMBERED = 1 << 17


@dataclass(frozen=True, slots=True)
class PointGlance:
    """A file of points at a glance; of one that cannot be used only `wrong` says something."""

    wrong: str | None
    digest: bytes = b""
    """Hash of the points, in whatever order they come."""
    cells: bytes = b""
    """Numbers of the cells of the fine grid that hold a point."""
    shares: bytes = b""
    """Share of the points in every cell of the coarse grid."""

    def sketch(self) -> frozenset[int]:
        """The cells of the fine grid with points in them: what is left after noise, another place and another size."""
        return frozenset(np.frombuffer(self.cells, np.int32).tolist())

    def grid(self) -> np.ndarray:
        """Root of the density in every cell of the coarse grid, the mean density being one [512], in float32."""
        roots: np.ndarray = np.sqrt(np.frombuffer(self.shares, np.float32) * np.float32(COARSE**3))
        return roots


def point_glance(path: Any) -> PointGlance:
    """What there is to say about the value of a column that should be the path of a file of points."""
    if not isinstance(path, str | Path):
        return PointGlance(f"path is not text ({type(path).__name__})")
    if not str(path).strip():
        return PointGlance("path is empty")
    try:
        state = Path(path).stat()
    except OSError:
        return _looked(str(path), 0, 0)
    return _looked(str(path), state.st_mtime_ns, state.st_size)


@lru_cache(REMEMBERED)
def _looked(path: str, changed: int, size: int) -> PointGlance:
    try:
        points_NC = read_points(path)
    except DataError as error:
        return PointGlance(error.what)
    digest = hashlib.blake2b(f"{points_NC.shape} ".encode() + points_NC.tobytes(), digest_size=16).digest()
    places_N3 = in_unit(points_NC)[:, :3]
    cells = np.unique(cells_of(places_N3, FINE)).astype(np.int32)
    shares = np.bincount(cells_of(places_N3, COARSE), minlength=COARSE**3) / len(places_N3)
    return PointGlance(None, digest, cells.tobytes(), shares.astype(np.float32).tobytes())


def cells_of(places_N3: np.ndarray, side: int) -> np.ndarray:
    """Number of the cell of every place, in a grid of `side` cells from -1 to 1 along each axis.

    >>> cells_of(np.array([[-1.0, -1, -1], [-1, -1, 0.9], [1, 1, 1]]), 2).tolist()
    [0, 1, 7]
    """
    steps = np.floor((places_N3 + 1) / 2 * side).astype(np.int64).clip(0, side - 1)
    found: np.ndarray = steps @ np.array([side * side, side, 1])
    return found
