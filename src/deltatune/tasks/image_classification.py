"""Image classification: one class of two or many, several findings at once, or a number per image.

row        {path, label}
model      any `transformers` image classifier, or a backbone that has one; its head is new when the checkpoint has none
loss       cross entropy, binary cross entropy per label, or squared error
metrics    accuracy, macro F1, Matthews, AUC, calibration, confusion; micro F1, AUC; Pearson, Spearman, R2

An image is decoded, resized and cut once, as the model's own processor does it; training may vary what came out.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import AutoModelForImageClassification

from deltatune.core.classification import Classification
from deltatune.core.extras import extra
from deltatune.core.image_augmentation import ImageAugmentation, augmented
from deltatune.core.image_glance import glance, why_not
from deltatune.core.image_network import take
from deltatune.core.image_processor import ImageProcessor
from deltatune.core.images import Window, each_image, read_image, room
from deltatune.core.linear_baseline import chosen, linear
from deltatune.core.mixing import blended, blended_labels
from deltatune.core.pretrained import pretrained
from deltatune.core.task import Batch, Column, Example, Loaded, Row


class ImageClassification(Classification):
    """Settings of image classification."""

    type: ClassVar[str] = "image-classification"
    title: ClassVar[str] = "Image classification and regression, medical images too"
    begin_with: ClassVar[str] = "facebook/dinov2-small"
    columns: ClassVar[Mapping[str, Column]] = {
        "path": Column(("path", "image", "image_path", "file", "file_name", "filename", "filepath"), path=True),
        "label": Column(("label", "labels", "class", "category", "target", "diagnosis", "findings")),
    }
    key: ClassVar[tuple[str, ...]] = ("path",)
    counted: ClassVar[str] = "images"

    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side of the square that images are read as, in pixels; none takes that of the model's own processor."""
    window: Window | None = None
    """Values that are black and white in images of more than 8 bits, such as 0 and 4095; none: 0 and 65535."""
    augmentation: ImageAugmentation | None = None
    """Vary the training images: crops, flips, turns, light and colour."""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Show training images mixed with another one, by a share from Beta(mixup, mixup); 0.2 is usual."""

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.window is not None and self.window[0] == self.window[1]:
            raise ValueError("window: black and white are the same value")
        return self

    # -- rows

    def check_input(self, row: Row) -> str | None:
        """A file that is missing, no image, broken, animated, too small or too large; every file is decoded."""
        return why_not(row.get("path"), self.window)

    def identity(self, row: Row) -> Hashable:
        """The decoded pixels: a copy under another name or in another kind of file is the same input."""
        return glance(row["path"], self.window).digest

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Bits of a perceptual hash: which of neighbouring cells is the brighter one, and where."""
        return glance(row["path"], self.window).sketch()

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The classifier and how it reads images; modules the checkpoint lacks are reported as new."""
        processor = ImageProcessor.of(model, self.image_size)
        network, new = pretrained(AutoModelForImageClassification, model, dtype, "an image classifier", **self.config())
        take(network, processor.height, processor.width)
        return Loaded(network, processor, new)

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Pixels in uint8 [3, height, width]; the label as the model's output index or vector."""
        pixels = room(len(rows), 3, processor.height, processor.width)

        def put(number: int, pixels_HWC: np.ndarray) -> None:
            pixels[number] = processor.sized(pixels_HWC)

        each_image([row["path"] for row in rows], self.window, put)
        labels = [{"label": self.target(row["label"])} if "label" in row else {} for row in rows]
        return [{"pixels": own, "length": 1, **label} for own, label in zip(pixels, labels, strict=True)]

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """The image varied, where that is asked for."""
        if self.augmentation is None:
            return example
        return {**example, "pixels": augmented(example["pixels"], self.augmentation, generator)}

    @property
    def mixes(self) -> bool:
        """Where mixup is asked for."""
        return self.mixup > 0

    def mix(self, example: Example, other: Example, generator: np.random.Generator) -> Example:
        """The image and its label with another one's in them."""
        share = float(generator.beta(self.mixup, self.mixup))
        label = blended_labels(example["label"], other["label"], share, len(self.label_names))
        return {**example, "pixels": blended(example["pixels"], other["pixels"], share), "label": label}

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Pixels in float32 [B, 3, height, width]."""
        batch = {"pixel_values": processor.normalised([example["pixels"] for example in examples])}
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch

    # -- scores

    def picture(self, row: Row) -> Any:
        """The image as it is read."""
        return extra("PIL.Image", "vision").fromarray(read_image(row["path"], self.window))

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """A linear model on the pixels of images of 16 x 16."""
        used = [train[index] for index in chosen(len(train))]
        known, asked = (np.stack([self._small(row) for row in part]) for part in (used, rows))
        name, answers = linear(self, known, [row["label"] for row in used], asked)
        return {f"16 x 16 pixels, {name}": self.score(answers, rows)}

    def _small(self, row: Row) -> np.ndarray:
        pixels_F: np.ndarray = glance(row["path"], self.window).thumbnail().ravel() / np.float32(255)
        return pixels_F
