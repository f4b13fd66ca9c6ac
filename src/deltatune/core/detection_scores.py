"""Scores of boxes: average precision as COCO defines it, by faster-coco-eval (extra `vision`).

    AP(class, t)   area under the precision of a class over its recall, boxes taken by score, where a box is right when
                   its IoU with a box of the class that nothing better took is at least t; 101 recalls
    map50          mean of AP(class, 0.5) over the classes that are there
    map            the same, also over t = 0.50, 0.55 .. 0.95

A box on something that is `ignored` counts neither way. At most 100 boxes of an image count.
Paper    Lin et al. 2014, arXiv:1405.0312 (COCO), and its evaluation code
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deltatune.core.extras import extra

Boxes = Sequence[Mapping[str, Any]]
"""Of one image: {label, box: [x0, y0, x1, y1]}, with `score` where they are answers."""
MOST = 100
FIRST_T, ALL_AREAS, MOST_BOXES = 0, 0, -1
"""Places in the tables of precision: IoU 0.5, boxes of any size, the largest number of boxes."""


def detection_scores(found: Sequence[Boxes], wanted: Sequence[Boxes], labels: Sequence[str]) -> dict[str, Any]:
    """map, map50, map75 and the table `per_class`; 0 where no class is there.

    Answers of each image are sorted by score, the best first.
    """
    there = Counter(box["label"] for boxes in wanted for box in boxes if not box.get("ignored"))
    classes = [label for label in labels if there[label]]
    if not classes:
        return {"map": 0.0, "map50": 0.0, "map75": 0.0, "per_class": []}
    precision_TRKAM = _evaluated(found, wanted, classes)["precision"]
    averages_TK = precision_TRKAM[:, :, :, ALL_AREAS, MOST_BOXES].mean(1)
    return {
        "map": float(averages_TK.mean()),
        "map50": float(averages_TK[FIRST_T].mean()),
        "map75": float(averages_TK[5].mean()),
        "per_class": [
            {"label": label, "ap": float(own.mean()), "ap50": float(own[FIRST_T]), "boxes": there[label]}
            for label, own in zip(classes, averages_TK.T, strict=True)
        ],
    }


def _evaluated(found: Sequence[Boxes], wanted: Sequence[Boxes], classes: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Among others the table `precision` [T, R, K, A, M]: thresholds, recalls, classes, areas, most boxes."""
    library = extra("faster_coco_eval", "vision")
    ids = {label: index for index, label in enumerate(classes, 1)}
    truth = library.COCO(
        {
            "images": [{"id": image} for image, _ in enumerate(wanted, 1)],
            "categories": [{"id": index, "name": label} for label, index in ids.items()],
            "annotations": [
                {"id": number, **entry, "iscrowd": int(box.get("ignored", False))}
                for number, (entry, box) in enumerate(_entries(wanted, ids), 1)
            ],
        }
    )
    answers = truth.loadRes([{**entry, "score": box["score"]} for entry, box in _entries(found, ids)])
    evaluation = library.COCOeval_faster(truth, answers, iouType="bbox")
    evaluation.params.maxDets = [MOST]
    evaluation.evaluate()
    evaluation.accumulate()
    tables: Mapping[str, np.ndarray] = evaluation.eval
    return tables


def _entries(images: Sequence[Boxes], ids: Mapping[str, int]) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """Boxes of the classes as COCO writes them, each with the box it came from."""
    for image, boxes in enumerate(images, 1):
        for box in boxes:
            if box["label"] in ids:
                x0, y0, x1, y1 = map(float, box["box"])
                sizes = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
                yield {"image_id": image, "category_id": ids[box["label"]], **sizes}, box
