"""Glance: what is remembered of an image file that was decoded once, about a kilobyte.

Rows are checked more than once and compared with each other before any is encoded; a glance answers all of it: what is
wrong with the file, whether another has the same pixels, whether it is nearly another, and what it looks like small.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deltatune.core.errors import DataError
from deltatune.core.images import LUMA, Window, read_image, resized

GRID = 12
"""Cells a side of the difference hash."""
STEP = 2
"""Brightness, of 255, that neighbouring cells must differ by to be an edge: noise of a flat image is none."""
SMALL = 16
"""Side of the small image."""
BILINEAR = 2
REMEMBERED = 1 << 17


@dataclass(frozen=True, slots=True)
class Glance:
    """An image file at a glance; of one that cannot be used only `wrong` says something."""

    wrong: str | None
    height: int = 0
    width: int = 0
    digest: bytes = b""
    """Hash of the decoded pixels and their shape."""
    edges: bytes = b""
    """Sign of the difference between each cell and the next one, right and down: 1, 0, 255 for minus one."""
    small: bytes = b""
    """16 x 16 pixels in RGB."""

    def sketch(self) -> frozenset[int]:
        """The edges with their places: what is left of them after compression, resizing and more light."""
        signs = np.frombuffer(self.edges, np.int8)
        places = np.flatnonzero(signs)
        return frozenset(((places + 1) * signs[places]).tolist())

    def thumbnail(self) -> np.ndarray:
        """The small image, [16, 16, 3] in uint8."""
        return np.frombuffer(self.small, np.uint8).reshape(SMALL, SMALL, 3)


def why_not(path: Any, window: Window | None = None) -> str | None:
    """What is wrong with the value of a column that should be the path of an image, or None."""
    if not isinstance(path, str | Path):
        return f"path is not text ({type(path).__name__})"
    return glance(path, window).wrong if str(path).strip() else "path is empty"


def glance(path: str | Path, window: Window | None = None) -> Glance:
    """What there is to say about an image file, decoded once as long as it does not change."""
    try:
        state = Path(path).stat()
    except OSError:
        return _looked(str(path), window, 0, 0)
    return _looked(str(path), window, state.st_mtime_ns, state.st_size)


@lru_cache(REMEMBERED)
def _looked(path: str, window: Window | None, changed: int, size: int) -> Glance:
    try:
        pixels_HWC = read_image(path, window)
    except DataError as error:
        return Glance(error.what)
    height, width, _ = pixels_HWC.shape
    digest = hashlib.blake2b(f"{height} {width} ".encode() + pixels_HWC.tobytes(), digest_size=16).digest()
    small = resized(pixels_HWC, SMALL, SMALL, BILINEAR).tobytes()
    return Glance(None, height, width, digest, edges(pixels_HWC).tobytes(), small)


def edges(pixels_HWC: np.ndarray) -> np.ndarray:
    """Signs of the differences of 13 x 12 and 12 x 13 cells of grey, 0 for less than `STEP`: int8 [288].

    A difference hash with three values (Krawetz 2013, dHash), in both directions.
    """
    grey = np.rint(pixels_HWC @ LUMA).astype(np.uint8)  # compression keeps it better than colours
    across = np.diff(resized(grey, GRID, GRID + 1, BILINEAR).astype(np.int16), axis=1)
    down = np.diff(resized(grey, GRID + 1, GRID, BILINEAR).astype(np.int16), axis=0)
    steps = np.concatenate([across.ravel(), down.ravel()])
    found: np.ndarray = (np.sign(steps) * (np.abs(steps) > STEP)).astype(np.int8)
    return found
