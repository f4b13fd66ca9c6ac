"""Image processor: pixels as one pretrained model reads them, in two steps, by its own processor of `transformers`.

    sized        RGB of any size -> [3, height, width] in uint8, once per image: what is kept in memory
    normalised   a batch of these -> float32, once per batch: a table of 256 values per channel

Both together are to the bit what the Pillow back end of the processor computes; torchvision is not needed. Rescaling
and normalising act on single values, so a table that the processor itself fills holds all of it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

# from its own module: at the top of transformers 5.17 it is a stand-in that asks for torchvision
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, AutoImageProcessor

from deltatune.core.errors import SettingsError
from deltatune.core.extras import extra
from deltatune.core.pretrained import check_source, processor_of, quiet

logger = logging.getLogger("deltatune")

KIND = "a model that reads images"
USUAL_SIDE = 224
VALUES = ("do_rescale", "do_normalize", "include_top")
"""Steps that change values and not places; the last is EfficientNet's."""
PLACES = ("do_resize", "do_center_crop", "do_pad")


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """How a model reads images."""

    processor: Any
    """Image processor of `transformers`, Pillow back end."""
    options: Mapping[str, Any]
    """What it is told beside its own settings: the size."""
    height: int
    width: int
    table_CV: np.ndarray
    """Float32 value of each of 256 brightnesses, per channel."""

    @classmethod
    def of(cls, model: str, side: int | None = None) -> "ImageProcessor":
        """The processor of a hub name or folder, for squares of `side` pixels or the size it was made for.

        Raises `SettingsError` for a model that does not read RGB images, or not of one size.
        """
        processor, known = image_processor(model)
        options, height, width = _geometry(processor, side or (None if known else _side_of(model)))
        return cls(processor, options, height, width, table_of(processor))

    def sized(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """An image of any size, resized and cut as the model's processor does: uint8 [3, height, width]."""
        return _run(self.processor, pixels_HWC, self.options)

    def normalised(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images of one size in uint8 as the model takes them: float32 [batch, 3, height, width]."""
        return normalised(self.table_CV, images)


def image_processor(model: str) -> tuple[Any, bool]:
    """The image processor of a model, and whether the model says which; else it is its family's with its own defaults.

    Raises `SettingsError`.
    """
    extra("PIL.Image", "vision")
    check_source(model)
    settings = {"backend": "pil", "trust_remote_code": False}
    with quiet():
        try:
            return AutoImageProcessor.from_pretrained(model, **settings), True
        except (OSError, ValueError, ImportError) as error:
            missing = isinstance(error, OSError)
            why = "no preprocessor_config.json" if missing else f"an image processor that cannot be used ({error})"
            config = processor_of(AutoConfig, model, KIND)
            made = _of_family(config)
    logger.warning(
        "%s has %s: images are read by %s as is usual for %s, mean %s",
        model,
        why,
        type(made).__name__,
        config.model_type,
        made.image_mean,
    )
    return made, False


def _of_family(config: PreTrainedConfig) -> Any:
    """The processor that models of a family usually have; ImageNet's colours and plain squares for one without."""
    made = IMAGE_PROCESSOR_MAPPING.get(type(config), {}).get("pil")
    if made is None:
        plain = extra("transformers.models.vit.image_processing_pil_vit", "vision").ViTImageProcessorPil
        return plain(image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)
    return made()


def _side_of(model: str) -> int:
    size = getattr(AutoConfig.from_pretrained(model, trust_remote_code=False), "image_size", None)
    return size if isinstance(size, int) else USUAL_SIDE


def table_of(processor: Any) -> np.ndarray:
    """What a processor makes of the brightnesses 0..255 of each channel, float32 [3, 256]."""
    ramp_HWC = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    options = _without(processor, PLACES)
    found = processor(ramp_HWC, input_data_format="channels_last", return_tensors="np", **options)["pixel_values"][0]
    if found.shape != (3, 256, 1):
        raise _unusual(processor)
    table_CV: np.ndarray = found[:, :, 0].astype(np.float32)
    return table_CV


def normalised(table_CV: np.ndarray, images: Sequence[np.ndarray]) -> Tensor:
    """Images [3, height, width] in uint8, all of one size, by the table of their processor: float32."""
    pixels_BCHW = np.stack(images)
    values = np.empty(pixels_BCHW.shape, np.float32)
    for channel, row in enumerate(table_CV):
        np.take(row, pixels_BCHW[:, channel], out=values[:, channel])
    return torch.from_numpy(values)


def _run(processor: Any, pixels_HWC: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    off = _without(processor, VALUES)
    found = processor(pixels_HWC, input_data_format="channels_last", return_tensors="np", **off, **options)
    pixels_CHW: np.ndarray = found["pixel_values"][0]
    if pixels_CHW.dtype != np.uint8 or pixels_CHW.ndim != 3:
        raise _unusual(processor)
    return pixels_CHW


def _without(processor: Any, steps: Sequence[str]) -> dict[str, Any]:
    """Settings that leave out those steps that a processor has."""
    return {step: False for step in steps if getattr(processor, step, None) is not None}


def _geometry(processor: Any, side: int | None) -> tuple[dict[str, Any], int, int]:
    """What the processor is told so that every image becomes one size, and that size.

    Processors resize a side and cut, or resize both sides, or do either by size: the first setting that makes a wide
    and a high image one size is theirs.
    """
    for options in _sizes(processor, side):
        try:
            shapes = {_run(processor, np.zeros(shape, np.uint8), options).shape for shape in ((48, 64, 3), (96, 32, 3))}
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if len(shapes) == 1:
            ((_, height, width),) = shapes
            if side is None or (height, width) == (side, side):
                return options, height, width
    name = type(processor).__name__
    if side is None:
        raise SettingsError(f"{name} makes images of many sizes", hint="set task.image_size, the side of a square")
    raise SettingsError(f"{name} cannot make squares of {side} pixels", hint="leave task.image_size out")


def _sizes(processor: Any, side: int | None) -> list[dict[str, Any]]:
    if side is None:
        return [{}]
    square = {"height": side, "width": side}
    crop, size = getattr(processor, "crop_size", None), getattr(processor, "size", None)
    own = getattr(size, "shortest_edge", None) or getattr(size, "height", None)
    margin = own / crop.height if own and crop is not None and crop.height else 1.0
    larger = round(side * margin)
    return [
        {"size": {"shortest_edge": larger}, "crop_size": square},
        {"size": {"height": larger, "width": larger}, "crop_size": square},
        {"size": {"shortest_edge": side}},
        {"size": square},
    ]


def _unusual(processor: Any) -> SettingsError:
    return SettingsError(f"{type(processor).__name__} does not make RGB images, as image tasks need")
