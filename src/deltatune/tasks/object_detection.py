"""Object detection: boxes with classes in images.

row        {path, boxes: [{label, box: [x0, y0, x1, y1]}]}
model      any `transformers` detector, or any vision backbone: then every patch answers with a box (`PatchDetector`)
loss       answers matched to boxes: classes, distance of corners, overlap (`core.set_loss`), mean over boxes
metrics    average precision of COCO: map, map50, map75, per class
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING

from deltatune.core import box_labels
from deltatune.core.box_labels import label_of
from deltatune.core.detection_scores import MOST, detection_scores
from deltatune.core.detector_processor import DetectorProcessor
from deltatune.core.division import by_group
from deltatune.core.drawing import boxes_on
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.image_augmentation import ImageAugmentation, placed, placement, recoloured
from deltatune.core.image_glance import glance
from deltatune.core.images import each_image, read_image, room
from deltatune.core.labels import Labels, natural
from deltatune.core.pretrained import named_classes, pretrained, processor_of
from deltatune.core.set_loss import NOTHING, Wanted, kind_of, set_loss
from deltatune.core.task import Batch, Column, Example, Loaded, Row, Task
from deltatune.models.patch_detector import on_backbone, shortened
from deltatune.ops.boxes import centres, corners, surest

logger = logging.getLogger("deltatune")

Side = Annotated[int, Field(ge=16)]
TENTHS = 10
"""Places a side among which the baseline takes boxes for the same."""


class ObjectDetection(Task):
    """Settings of object detection."""

    type: ClassVar[str] = "object-detection"
    title: ClassVar[str] = "Objects in images, as boxes with classes"
    begin_with: ClassVar[str] = "facebook/dinov2-small"
    columns: ClassVar[Mapping[str, Column]] = {
        "path": Column(("path", "image", "file", "file_name", "filename", "image_path"), path=True),
        "boxes": Column(("boxes", "objects", "annotations", "label")),
    }
    label: ClassVar[str | None] = "boxes"
    key: ClassVar[tuple[str, ...]] = ("path",)
    counted: ClassVar[str] = "images"
    resamples: ClassVar[int] = 40

    labels: Labels | None = None
    """Classes in the order of the model's outputs; none: those of the training rows, sorted."""
    image_size: Side | tuple[Side, Side] | None = None
    """Pixels a side, or height and width, that every image is resized to; none: what the model was made for."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """Blocks of a backbone that are used, from the first on; none: all."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Least score of a box in an answer; scoring takes all boxes."""
    nms_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """IoU above which the less sure of two boxes of a class is left out; none: a set answers for each object once."""
    augmentation: ImageAugmentation | None = None
    """Vary the training images, boxes with them."""

    @model_validator(mode="after")
    def _check_augmentation(self) -> Self:
        if self.augmentation is not None and self.augmentation.rotation:
            raise ValueError("augmentation.rotation would leave boxes loose around turned objects: take it out")
        return self

    @property
    def predicts(self) -> Literal["sets"]:
        """Answers without an order: those of two models cannot be compared one by one."""
        return "sets"

    @property
    def metric(self) -> str:
        """Mean average precision over classes and IoU 0.50 to 0.95."""
        return "map"

    @property
    def label_names(self) -> Sequence[str]:
        """Classes in the order of the model's outputs."""
        return self.labels or ()

    # -- rows

    def check(self, row: Row) -> str | None:
        """A missing or broken image, boxes that are none or not in it, unknown classes."""
        path = row.get("path")
        if not isinstance(path, str) or not path.strip():
            return "path is empty" if isinstance(path, str) else f"path is not text ({type(path).__name__})"
        seen = glance(path)
        if seen.wrong is not None or "boxes" not in row:
            return seen.wrong
        return box_labels.problem(row["boxes"], seen.height, seen.width, self.labels)

    def identity(self, row: Row) -> Hashable:
        """The pixels, whatever the file is called."""
        return glance(row["path"]).digest

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Edges of the image, coarse."""
        return glance(row["path"]).sketch()

    def fit(self, rows: Sequence[Row]) -> Self:
        """Classes from the training rows; raises `DataError` without any box."""
        counts = Counter(label_of(entry) for row in rows for entry in box_labels.learned(row["boxes"]))
        if not counts:
            raise DataError("no training image has a box", hint="name the column with data.columns.boxes")
        return self.model_copy(update={"labels": self.labels or tuple(sorted(counts, key=natural))})

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """Images drawn, whatever is on them."""
        parts = by_group(range(len(rows)), shares, seed)
        return {name: [rows[index] for index in part] for name, part in parts.items()}

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The detector, or a backbone with a fresh head, and how it reads images."""
        config = processor_of(AutoConfig, model, "a model that reads images")
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        processor = DetectorProcessor.of(model, config, size)
        classes = named_classes(list(self.label_names))
        if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
            if self.layers is not None:
                raise SettingsError(f"task.layers has no effect on {config.model_type}: it is a detector already")
            # boxes with noise are answered in the base's training mode alone
            fixed = {"num_denoising": 0} if "num_denoising" in config.to_dict() else {}
            network, new = pretrained(AutoModelForObjectDetection, model, dtype, "a detector", **classes, **fixed)
            return Loaded(network, processor, new)
        config = config if self.layers is None else shortened(config, self.layers)
        backbone, new = pretrained(AutoModel, model, dtype, "a vision backbone", config=config)
        detector, new = on_backbone(backbone, new, **classes)
        return Loaded(detector.to(backbone.dtype), processor, new)

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Sized images with the boxes that count, as corners in shares of the image."""
        examples: list[dict[str, Any]] = [{"length": 1} for _ in rows]
        pixels_NCHW = room(len(rows), 3, processor.height, processor.width)

        def keep(number: int, pixels_HWC: np.ndarray) -> None:
            pixels_NCHW[number] = processor.sized(pixels_HWC)
            examples[number] |= {"pixels": pixels_NCHW[number], "size": pixels_HWC.shape[:2]}

        each_image([row["path"] for row in rows], None, keep)
        clipped = crowded = 0
        for row, example in zip(rows, examples, strict=True):
            if "boxes" in row:
                own = list(box_labels.learned(row["boxes"]))
                boxes, count = box_labels.shares(own, *example["size"])
                clipped += count
                crowded += processor.most is not None and len(own) > processor.most
                example |= {"boxes": boxes, "classes": [self.label_names.index(label_of(entry)) for entry in own]}
        if clipped:
            logger.warning("%d boxes stick out of their image by up to a pixel and are clipped", clipped)
        if crowded:
            logger.warning("%d images have more boxes than the %d this model answers with", crowded, processor.most)
        return list(examples)

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """The image varied where that is asked for, its boxes where they are then."""
        if self.augmentation is None:
            return example
        pixels_CHW = example["pixels"]
        _, height, width = pixels_CHW.shape
        place = placement(height, width, self.augmentation, generator)
        sides = np.array([width, height], np.float64)
        points_N22 = np.asarray(example["boxes"], np.float64).reshape(-1, 2, 2) * sides
        moved_N22 = place.points(points_N22.reshape(-1, 2)).reshape(-1, 2, 2) / sides
        boxes, kept = box_labels.visible(np.concatenate([moved_N22.min(1), moved_N22.max(1)], 1))
        classes = [index for index, keep in zip(example["classes"], kept, strict=True) if keep]
        varied = recoloured(placed(pixels_CHW, place), self.augmentation, generator)
        return {**example, "pixels": varied, "boxes": boxes[kept].astype(np.float32), "classes": classes}

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Images [B, 3, H, W], and of each its boxes as centre and size, class by class; `NOTHING` behind the last."""
        batch = {
            "pixel_values": processor.normalised([example["pixels"] for example in examples]),
            "labels_size": torch.tensor([example["size"] for example in examples]),
        }
        if "boxes" in examples[0]:
            most = max(1, *(len(example["classes"]) for example in examples))
            classes_BM = torch.full((len(examples), most), NOTHING)
            boxes_BM4 = torch.zeros(len(examples), most, 4)
            for row, example in enumerate(examples):
                count = len(example["classes"])
                classes_BM[row, :count] = torch.tensor(example["classes"], dtype=torch.long)
                boxes_BM4[row, :count] = centres(torch.from_numpy(example["boxes"]))
            batch |= {"labels": classes_BM, "labels_boxes": boxes_BM4}
        return batch

    # -- learning

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean over the boxes of the batch, in float32; an image without boxes counts as one."""
        wanted = _wanted(batch)
        return set_loss(output, wanted, len(self.label_names)) / wanted.weight

    def weight(self, batch: Batch) -> int:
        """Boxes, and images without."""
        return _wanted(batch).weight

    def read(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """Boxes in pixels of the file's image, the surest first: all of 100 where there are labels to score against."""
        least = 0.0 if "labels" in batch else self.threshold
        scores_BQC = _scores(output, len(self.label_names))
        count = min(MOST, scores_BQC[0].numel())
        scores_BK, places_BK = scores_BQC.flatten(1).topk(count)
        query_BK, class_BK = places_BK // scores_BQC.shape[2], places_BK % scores_BQC.shape[2]
        sides_B14 = batch["labels_size"].flip(1).repeat(1, 2)[:, None].float()
        boxes_BQ4 = corners(output.pred_boxes.float()).clamp(0, 1) * sides_B14
        boxes_BK4 = boxes_BQ4.gather(1, query_BK[..., None].expand(-1, -1, 4))
        images = zip(scores_BK, class_BK, boxes_BK4, strict=True)
        return [{"boxes": self._entries(*image, least=least)} for image in images]

    def _entries(self, scores_K: Tensor, class_K: Tensor, boxes_K4: Tensor, least: float) -> list[dict[str, Any]]:
        """The answers of an image for people, those that another one covers left out."""
        kept_K = scores_K >= least
        if self.nms_threshold is not None:
            kept_K &= surest(boxes_K4, class_K, self.nms_threshold)
        chosen = (values[kept_K].tolist() for values in (class_K, scores_K, boxes_K4))
        return [
            {"label": self.label_names[index], "score": score, "box": box}
            for index, score, box in zip(*chosen, strict=True)
        ]

    def draw(self, answer: Mapping[str, Any], row: Row) -> Any:
        """The image with the boxes of an answer that are sure enough."""
        return boxes_on(read_image(row["path"]), self._sure(answer), self.label_names)

    def _sure(self, answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [entry for entry in answer["boxes"] if entry.get("score", 1.0) >= self.threshold]

    def wanted(self, row: Row) -> Any:
        """Boxes with their classes."""
        return [{**entry, "label": label_of(entry)} for entry in row["boxes"]]

    def said(self, answer: Mapping[str, Any]) -> Any:
        """The boxes that are sure enough."""
        return self._sure(answer)

    def merit(self, answer: Mapping[str, Any], row: Row) -> float:
        """Average precision on one image; without objects 1 where none is found and else 0."""
        if not any(True for _ in box_labels.learned(row["boxes"])):
            return float(not self._sure(answer))
        return super().merit(answer, row)

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """Average precision as COCO defines it."""
        wanted = [self.wanted(row) for row in rows]
        return detection_scores([answer["boxes"] for answer in answers], wanted, self.label_names)

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """The boxes that the training images have most often, to a tenth of the image; their share is the score."""
        alike: dict[Any, list[np.ndarray]] = defaultdict(list)
        for row in train:
            own = list(box_labels.learned(row["boxes"]))
            seen = glance(row["path"])
            for entry, box in zip(own, box_labels.shares(own, seen.height, seen.width)[0], strict=True):
                alike[label_of(entry), *np.rint(box * TENTHS).tolist()].append(box)
        common = sorted(alike.items(), key=lambda pair: -len(pair[1]))[:MOST]
        answers = []
        for row in rows:
            seen = glance(row["path"])
            sides = np.array([seen.width, seen.height] * 2)
            found = [
                {"label": key[0], "score": len(boxes) / len(train), "box": (np.mean(boxes, 0) * sides).tolist()}
                for key, boxes in common
            ]
            answers.append({"boxes": found})
        return "most frequent boxes", self.score(answers, rows)


def _wanted(batch: Batch) -> Wanted:
    return Wanted(batch["labels"], batch["labels_boxes"])


def _scores(output: Any, classes: int) -> Tensor:
    """Chance of every class for every answer [B, Q, C]; of softmax only the likeliest, the others are 0."""
    logits_BQC: Tensor = output.logits.float()
    if kind_of(output, classes) != "softmax":
        return logits_BQC.sigmoid()
    chances_BQC = logits_BQC.softmax(-1)[..., :-1]
    return torch.where(chances_BQC == chances_BQC.amax(-1, keepdim=True), chances_BQC, 0.0)
