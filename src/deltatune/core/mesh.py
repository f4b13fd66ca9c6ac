"""Mesh: points and the triangles between them; points drawn on its surface.

N points of C values, the first three being the place, F triangles
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deltatune.core.errors import DataError

MOST_POINTS = 5_000_000
"""Of a file; more of them say nothing more about a shape."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """What a file of points or of a surface holds."""

    points_NC: np.ndarray
    faces_F3: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    """Indices of the corners; none: a cloud of points."""


def check_count(count: int, what: str) -> None:
    """Raises `DataError` for a number that no file of ours has."""
    if not 0 <= count <= MOST_POINTS:
        raise DataError(f"{count:,} {what} are more than {MOST_POINTS:,}" if count > 0 else f"{count} {what}")


def numbers(rows: Sequence[Sequence[str]], width: int) -> np.ndarray:
    """The first numbers of rows of words [rows, width]; raises `DataError` for a row that has fewer."""
    short = next((row for row in rows if len(row) < width), None)
    if short is not None:
        raise DataError(f"a point has {len(short)} of {width} numbers ({' '.join(short)[:40]!r})")
    found: np.ndarray = np.array([row[:width] for row in rows], np.float64).reshape(len(rows), width)
    return found


def triangles(polygons: Sequence[Sequence[int]] | np.ndarray, points: int) -> np.ndarray:
    """Triangles [F, 3] of polygons, cut as fans from their first corner; fewer than three corners have no surface.

    Raises `DataError` for a corner that is no point.

    >>> triangles([[0, 1, 2, 3], [4, 5]], 6).tolist()
    [[0, 1, 2], [0, 2, 3]]
    """
    groups: dict[int, list[Sequence[int]]] = {}
    for polygon in polygons:
        groups.setdefault(len(polygon), []).append(polygon)
    fans = [_fans(np.array(group, np.int64)) for corners, group in groups.items() if corners >= 3]
    found_F3: np.ndarray = np.concatenate(fans) if fans else np.zeros((0, 3), np.int64)
    wrong = found_F3[(found_F3 < 0) | (found_F3 >= points)]
    if len(wrong):
        raise DataError(f"a face has corner {wrong[0]}, the points are 0 to {points - 1}")
    return found_F3


def _fans(polygons_PK: np.ndarray) -> np.ndarray:
    corners = polygons_PK.shape[1]
    fans = [polygons_PK[:, [0, place, place + 1]] for place in range(1, corners - 1)]
    found: np.ndarray = np.stack(fans, 1).reshape(-1, 3)
    return found


def on_surface(mesh: Mesh, count: int) -> np.ndarray:
    """Points drawn on the triangles [count, C], as many on each as its area asks for to one; always the same ones.

    Raises `DataError` for a surface without area, and for values that are not finite.

    >>> corners = np.array([[0.0, 0, 1], [2, 0, 1], [2, 2, 1], [0, 2, 1]])
    >>> on_surface(Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]])), 1000).mean(0).round(1).tolist()
    [1.0, 1.0, 1.0]
    """
    if not np.isfinite(mesh.points_NC).all():
        raise DataError("its points have values that are not finite")
    corners_F3C = mesh.points_NC[mesh.faces_F3].astype(np.float64)
    edges = corners_F3C[:, 1:, :3] - corners_F3C[:, :1, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # no area then, and said
        areas = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    if not 0 < areas.sum() < np.inf:
        raise DataError(f"its {len(areas)} faces have no area")
    generator = np.random.default_rng(0)
    places = (np.arange(count) + generator.random(count)) / count
    chosen = np.searchsorted(areas.cumsum() / areas.sum(), places).clip(max=len(areas) - 1)
    a, b = generator.random((2, count, 1))
    folded = a + b > 1
    a, b = np.where(folded, 1 - a, a), np.where(folded, 1 - b, b)
    first, second, third = corners_F3C[chosen].transpose(1, 0, 2)
    drawn: np.ndarray = ((1 - a - b) * first + a * second + b * third).astype(np.float32)
    return drawn
