"""Image augmentation: crops, flips, turns, light and colour, on pixels that are sized already.

    crop       a part of 1 - crop .. 1 of the area at the same aspect ratio, resized back
    flip       left and right exchanged, or top and bottom
    rotation   up to so many degrees; what comes in from outside is the mean colour
    colour     brightness, contrast and saturation by 1 - colour .. 1 + colour, each
    erase      a square of up to this share of the area in the mean colour

Every image is varied anew at every step by a given generator. What only moves pixels is one affine map (`Placement`),
so that boxes and masks can follow it. Papers: Szegedy et al. 2015, arXiv:1409.4842 (crops); Zhong et al. 2017,
arXiv:1708.04896 (erasing); light and colour are of the set of Cubuk et al. 2019, arXiv:1909.13719 (RandAugment).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from deltatune.core.config import Settings
from deltatune.core.extras import extra
from deltatune.core.images import LUMA

BILINEAR = 2


class ImageAugmentation(Settings):
    """How training images are varied; `{}` takes what rarely hurts."""

    crop: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Largest share of the area that is cut off."""
    flip: Literal["none", "horizontal", "vertical", "both"] = "horizontal"
    """What is exchanged in half of the images; `none` where left and right mean something (letters, organs)."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest angle in degrees."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest change of brightness, contrast and saturation."""
    erase: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest share of the area that is covered by a square in half of the images."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if not (self.crop or self.flip != "none" or self.rotation or self.colour or self.erase):
            raise ValueError("nothing is varied: set crop, flip, rotation, colour or erase, or take augmentation out")
        return self


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the pixels of the varied image come from: x_old = a x + b y + c, y_old = d x + e y + f."""

    height: int
    width: int
    matrix: tuple[float, float, float, float, float, float]

    @property
    def moves(self) -> bool:
        """Whether it is more than the identity."""
        return self.matrix != IDENTITY

    def points(self, points_N2: np.ndarray) -> np.ndarray:
        """Where points (x, y) of the old image are in the new one.

        >>> mirrored = Placement(4, 10, (-1, 0, 10, 0, 1, 0))
        >>> mirrored.points(np.array([[2.0, 3.0]])).tolist()
        [[8.0, 3.0]]
        """
        a, b, c, d, e, f = self.matrix
        moved: np.ndarray = np.linalg.solve([[a, b], [d, e]], (points_N2 - [c, f]).T).T
        return moved


IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def augmented(pixels_CHW: np.ndarray, settings: ImageAugmentation, generator: np.random.Generator) -> np.ndarray:
    """An image of the same size and type (uint8 [3, height, width]), varied."""
    _, height, width = pixels_CHW.shape
    place = placement(height, width, settings, generator)
    return recoloured(placed(pixels_CHW, place), settings, generator)


def placement(height: int, width: int, settings: ImageAugmentation, generator: np.random.Generator) -> Placement:
    """Draws crop, flip and rotation for an image of a size; always the same number of draws."""
    area, x, y, turn, mirror, upset = generator.random(6)
    side = math.sqrt(1 - settings.crop * area)
    left, top = x * (1 - side) * width, y * (1 - side) * height
    angle = math.radians(settings.rotation * (2 * turn - 1))
    across = -1 if mirror < 0.5 and settings.flip in ("horizontal", "both") else 1
    down = -1 if upset < 0.5 and settings.flip in ("vertical", "both") else 1
    cos, sin = math.cos(angle) * side, math.sin(angle) * side
    a, b, d, e = cos * across, -sin * down, sin * across, cos * down
    centre_x, centre_y = left + side * width / 2, top + side * height / 2
    return Placement(
        height,
        width,
        (a, b, centre_x - (a * width + b * height) / 2, d, e, centre_y - (d * width + e * height) / 2),
    )


def placed(pixels_CHW: np.ndarray, place: Placement) -> np.ndarray:
    """The pixels where a placement puts them; outside of the image is its mean colour."""
    if not place.moves:
        return pixels_CHW
    module = extra("PIL.Image", "vision")
    image = module.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
    moved = image.transform(
        image.size, module.Transform.AFFINE, place.matrix, resample=BILINEAR, fillcolor=_mean(pixels_CHW)
    )
    return np.asarray(moved).transpose(2, 0, 1)


def recoloured(pixels_CHW: np.ndarray, settings: ImageAugmentation, generator: np.random.Generator) -> np.ndarray:
    """The pixels in another light, and a square of them covered."""
    factors = 1 + settings.colour * (2 * generator.random(3) - 1)
    found = _light(pixels_CHW, *factors) if settings.colour else pixels_CHW
    share, y, x, covered = generator.random(4)
    return _erased(found, settings.erase * share, y, x) if settings.erase and covered < 0.5 else found


def _light(pixels_CHW: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Saturation around the grey of each pixel, contrast around the mean grey, then brightness: one linear map."""
    values = pixels_CHW.astype(np.float32)
    grey_HW = np.tensordot(LUMA, values, 1)
    mixed = grey_HW + np.float32(saturation) * (values - grey_HW)
    shown = np.float32(brightness) * (grey_HW.mean() + np.float32(contrast) * (mixed - grey_HW.mean()))
    found: np.ndarray = np.rint(shown.clip(0, 255)).astype(np.uint8)
    return found


def _erased(pixels_CHW: np.ndarray, share: float, y: float, x: float) -> np.ndarray:
    _, height, width = pixels_CHW.shape
    side = min(round(math.sqrt(share * height * width)), height, width)
    top, left = round(y * (height - side)), round(x * (width - side))
    found = pixels_CHW.copy()
    found[:, top : top + side, left : left + side] = np.array(_mean(pixels_CHW), np.uint8)[:, None, None]
    return found


def _mean(pixels_CHW: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in np.rint(pixels_CHW.mean((1, 2))))
