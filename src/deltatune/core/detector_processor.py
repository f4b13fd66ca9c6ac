"""Detector processor: what a detector reads of an image, and which size.

Every image is resized to one height and width whatever its shape, as RT-DETR's own processor does: nothing is padded,
so a row cannot depend on its neighbours, and a box is the same share of the image before and after. Values are those of
the model's own processor (`core.image_processor`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig

from deltatune.core import image_processor, images
from deltatune.core.errors import SettingsError

FALLBACK = 640
BICUBIC = 3


@dataclass(frozen=True, slots=True)
class DetectorProcessor:
    """How a detector reads images."""

    height: int
    width: int
    resample: int
    """Pillow's number of the way pixels are resized."""
    table_CV: np.ndarray
    """Float32 value of each of 256 brightnesses, per channel."""
    most: int | None
    """Boxes that the model can answer with at most; None: one per patch."""

    @classmethod
    def of(cls, model: str, config: PreTrainedConfig, size: tuple[int, int] | None) -> "DetectorProcessor":
        """The processor of a model, for images of `size` (height, width) or the size it was made for.

        Raises `SettingsError` for a size that the model cannot read.
        """
        processor, known = image_processor.image_processor(model)
        height, width = size or _own_size(processor, config, known)
        unit = _unit(config)
        if height % unit or width % unit:
            near = [max(unit, round(side / unit) * unit) for side in (height, width)]
            raise SettingsError(
                f"task.image_size {height} x {width} is no multiple of the {unit} pixels of a patch of this model",
                hint=f"try [{near[0]}, {near[1]}]",
            )
        most = next((n for key in ("num_queries", "num_detection_tokens") if (n := getattr(config, key, None))), None)
        resample = getattr(processor, "resample", None)
        table = image_processor.table_of(processor)
        return cls(height, width, BICUBIC if resample is None else int(resample), table, most)

    def sized(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """An image of any size as uint8 [3, height, width]."""
        return images.resized(pixels_HWC, self.height, self.width, self.resample).transpose(2, 0, 1)

    def normalised(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Sized images as the model takes them: float32 [batch, 3, height, width]."""
        return image_processor.normalised(self.table_CV, pixels)


def _own_size(processor: Any, config: PreTrainedConfig, known: bool) -> tuple[int, int]:
    """Height and width, or the cut, or a square of the shorter side; without a processor the model's own size."""
    own = getattr(config, "image_size", None)
    if not known and own:
        return (own, own) if isinstance(own, int) else (own[0], own[1])
    for size in (getattr(processor, "crop_size", None), getattr(processor, "size", None)):
        sides = dict(size) if size else {}
        if sides.get("height") and sides.get("width"):
            return sides["height"], sides["width"]
        if sides.get("shortest_edge"):
            return sides["shortest_edge"], sides["shortest_edge"]
    return FALLBACK, FALLBACK


def _unit(config: PreTrainedConfig) -> int:
    """What both sides are a multiple of: the patch, or the stride of the coarsest map."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, list | tuple):
        patch = max(patch)
    return int(patch or max(getattr(config, "feat_strides", None) or [1]))
