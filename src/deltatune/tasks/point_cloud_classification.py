"""Point cloud classification: one class of two or many, several labels at once, or a number per shape.

row        {path, label}; the file holds points (.npy, .ply) or a mesh (.ply, .off)
model      a point transformer of ours; its head is new when the checkpoint has none
loss       cross entropy, binary cross entropy per label, or squared error
metrics    accuracy, macro F1, Matthews, AUC, calibration, confusion; micro F1, AUC; Pearson, Spearman, R2

B clouds, N points of C values
"""

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from transformers import AutoConfig

from deltatune.core.classification import Classification
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.linear_baseline import chosen, linear
from deltatune.core.point_augmentation import PointAugmentation, augmented
from deltatune.core.point_cloud import PointProcessor
from deltatune.core.point_files import LEAST_POINTS, read_points
from deltatune.core.point_glance import COARSE, point_glance
from deltatune.core.pretrained import pretrained, processor_of
from deltatune.core.task import Batch, Column, Example, Loaded, Row
from deltatune.models.point_transformer import PointTransformerConfig, PointTransformerForClassification

logger = logging.getLogger("deltatune")


class PointCloudClassification(Classification):
    """Settings of point cloud classification."""

    type: ClassVar[str] = "point-cloud-classification"
    title: ClassVar[str] = "Point cloud and mesh classification and regression"
    columns: ClassVar[Mapping[str, Column]] = {
        "path": Column(("path", "points", "point_cloud", "cloud", "mesh", "shape", "file", "file_name"), path=True),
        "label": Column(("label", "labels", "class", "category", "target")),
    }
    key: ClassVar[tuple[str, ...]] = ("path",)
    counted: ClassVar[str] = "shapes"

    num_points: Annotated[int, Field(ge=LEAST_POINTS, le=16_384)] | None = None
    """Points that the model reads of every shape; none takes the number it was pretrained on."""
    unit_sphere: bool = True
    """Shapes are moved and scaled into the unit sphere; false where place and size mean something."""
    augmentation: PointAugmentation | None = None
    """Vary the training shapes: noise, turns, sizes, points left out."""

    # -- rows

    def check_input(self, row: Row) -> str | None:
        """A file that is missing, of no known kind, broken, too large, or holds no shape; every file is read."""
        return point_glance(row.get("path")).wrong

    def identity(self, row: Row) -> Hashable:
        """The points, in whatever order and kind of file."""
        return point_glance(row["path"]).digest

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Cells of a grid that the shape goes through, wherever it lies and however large it is."""
        return point_glance(row["path"]).sketch()

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The classifier and how it reads points; raises `SettingsError` for another kind of model."""
        config = processor_of(AutoConfig, model, "a point transformer")
        if not isinstance(config, PointTransformerConfig):
            raise SettingsError(
                f"model {model!r} is a {config.model_type}, no {PointTransformerConfig.model_type}",
                hint="see docs/tasks/point-cloud-classification.md for how one is made",
            )
        count = self.num_points or config.num_points
        if count < config.group_size:
            raise SettingsError(f"task.num_points {count} is less than the {config.group_size} of one group")
        network, new = pretrained(
            PointTransformerForClassification, model, dtype, "a point transformer", **self.config()
        )
        return Loaded(network, PointProcessor(count, config.num_channels, self.unit_sphere), new)

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Points in float32 [N, C]; the label as the model's output index or vector."""
        examples: list[Example] = []
        for row in rows:
            label = {"label": self.target(row["label"])} if "label" in row else {}
            try:
                own = {"points": processor.cloud(row["path"])}
            except DataError as error:
                own = {"wrong": error.what}
            examples.append({**own, **label, "length": 1})
        return examples

    def unusable(self, example: Example) -> str | None:
        """Fewer values a point than the model reads."""
        wrong: str | None = example.get("wrong")
        return wrong

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """The cloud varied, where that is asked for."""
        if self.augmentation is None:
            return example
        return {**example, "points": augmented(example["points"], self.augmentation, generator)}

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Points in float32 [B, N, C]."""
        batch = {"points": torch.from_numpy(np.stack([example["points"] for example in examples]))}
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch

    # -- scores

    def plot(self, axes: Any, answer: Mapping[str, Any], row: Row) -> bool:
        """The points from the front, the nearer the darker."""
        points_NC = read_points(row["path"])
        axes.scatter(points_NC[:, 0], points_NC[:, 1], c=points_NC[:, 2], s=4, cmap="cividis", linewidths=0)
        axes.set_aspect("equal")
        axes.set_axis_off()
        return True

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """A linear model on how many points are in every cell of a grid."""
        used = [train[index] for index in chosen(len(train))]
        known, asked = (np.stack([point_glance(row["path"]).grid() for row in part]) for part in (used, rows))
        name, answers = linear(self, known, [row["label"] for row in used], asked)
        return {f"points in {COARSE} x {COARSE} x {COARSE} cells, {name}": self.score(answers, rows)}
