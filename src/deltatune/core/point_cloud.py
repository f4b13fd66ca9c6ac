"""Point cloud: the points of a file as a model reads them, all clouds with the same number of points.

N points of C values, the first three being the place
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deltatune.core.errors import DataError
from deltatune.core.point_files import read_points
from deltatune.ops.points import farthest

EXACT = 16_384
"""Points that farthest ones are looked for among; of more, so many are drawn first, always the same ones."""


@dataclass(frozen=True, slots=True)
class PointProcessor:
    """How a model reads points."""

    count: int
    """Points of every cloud."""
    values: int
    """Values of a point."""
    unit: bool
    """Clouds are moved and scaled into the unit sphere."""

    def cloud(self, path: str | Path) -> np.ndarray:
        """The points of a file [count, values]; raises `DataError` where it has fewer values than the model reads."""
        points_NC = read_points(path)
        if points_NC.shape[1] < self.values:
            raise DataError(f"shape has {points_NC.shape[1]} values a point ({path}), the model reads {self.values}")
        own_NC = points_NC[:, : self.values]
        return counted(in_unit(own_NC) if self.unit else own_NC, self.count)


def in_unit(points_NC: np.ndarray) -> np.ndarray:
    """The cloud with its mean at zero and its farthest point at distance 1.

    >>> in_unit(np.array([[1.0, 5, 0, 7], [5.0, 5, 0, 8]])).tolist()
    [[-1.0, 0.0, 0.0, 7.0], [1.0, 0.0, 0.0, 8.0]]
    """
    places_N3 = points_NC[:, :3].astype(np.float64)
    places_N3 -= places_N3.mean(0)
    places_N3 /= np.linalg.norm(places_N3, axis=1).max() or 1.0
    return np.concatenate([places_N3.astype(points_NC.dtype), points_NC[:, 3:]], 1)


def counted(points_NC: np.ndarray, count: int) -> np.ndarray:
    """So many points: of more those that are farthest from each other, of fewer each again and again.

    >>> counted(np.array([[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [8, 0, 0]]), 2)[:, 0].tolist()
    [10.0, 0.0]
    >>> counted(np.array([[0.0, 0, 0], [1, 0, 0]]), 5)[:, 0].tolist()
    [0.0, 1.0, 0.0, 1.0, 0.0]
    """
    if len(points_NC) <= count:
        return points_NC[np.arange(count) % len(points_NC)]
    if len(points_NC) > max(EXACT, count):
        drawn = np.random.default_rng(0).choice(len(points_NC), max(EXACT, count), replace=False)
        points_NC = points_NC[np.sort(drawn)]
    places = torch.from_numpy(np.ascontiguousarray(points_NC[:, :3], np.float32))
    found: np.ndarray = points_NC[farthest(places[None], count)[0].numpy()]
    return found
