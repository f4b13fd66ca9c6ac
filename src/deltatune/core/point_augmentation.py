"""Point augmentation: noise, turns, sizes, and points left out.

    jitter     every point moved by a normal step, cut off at three of them
    rotation   up to so many degrees around an axis, or around any
    scale      the cloud 1 - scale .. 1 + scale as large
    dropout    up to this share of the points takes the place of another point, so that their number stays

Every cloud is varied anew at every step by a given generator. Qi et al. 2017, arXiv:1706.02413 (random dropout).
"""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from deltatune.core.config import Settings


class PointAugmentation(Settings):
    """How training clouds are varied; `{}` takes what rarely hurts."""

    jitter: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Standard deviation of the steps, in radii of the cloud where it is scaled, else in units of the files."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest angle in degrees; normals turn along."""
    axis: Literal["x", "y", "z", "any"] = "z"
    """What clouds turn around; the one that points up, where they stand upright."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of the size."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Largest share of the points that is left out."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if not (self.jitter or self.rotation or self.scale or self.dropout):
            raise ValueError("nothing is varied: set jitter, rotation, scale or dropout, or take augmentation out")
        if self.axis != "z" and not self.rotation:
            raise ValueError("axis has no effect without rotation")
        return self


def augmented(points_NC: np.ndarray, settings: PointAugmentation, generator: np.random.Generator) -> np.ndarray:
    """A cloud of the same shape and type, varied; always the same number of draws for a number of points."""
    count = len(points_NC)
    left_out, size, angle = generator.random(3)
    towards = generator.normal(size=3)
    order = generator.permutation(count)
    steps_N3 = generator.normal(size=(count, 3)).clip(-3, 3) * settings.jitter
    turn_33 = rotation(_axis(settings.axis, towards), np.radians(settings.rotation * (2 * angle - 1)))
    found = points_NC.copy()
    found[:, :3] = points_NC[:, :3] @ turn_33.T * (1 + settings.scale * (2 * size - 1)) + steps_N3
    if points_NC.shape[1] >= 6:
        found[:, 3:6] = points_NC[:, 3:6] @ turn_33.T
    dropped = int(settings.dropout * left_out * count)
    found[order[:dropped]] = found[order[-1]]
    return found


def rotation(axis_3: np.ndarray, angle: float) -> np.ndarray:
    """The matrix of a turn around an axis of length 1, in radians (Rodrigues).

    >>> (rotation(np.array([0.0, 0, 1]), np.pi / 2) @ [1, 0, 0]).round(6).tolist()
    [0.0, 1.0, 0.0]
    """
    x, y, z = axis_3
    cross_33 = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    found: np.ndarray = np.eye(3) + np.sin(angle) * cross_33 + (1 - np.cos(angle)) * cross_33 @ cross_33
    return found


def _axis(name: str, towards_3: np.ndarray) -> np.ndarray:
    axis_3: np.ndarray = towards_3 / np.linalg.norm(towards_3) if name == "any" else np.eye(3)["xyz".index(name)]
    return axis_3
