"""Box labels: what stands in a column of boxes, checked against its image.

    boxes    [{label, box: [x0, y0, x1, y1], ignored?}], corners in pixels of the upright image, x to the right, y down

Coordinates that stick out by up to `TOLERANCE` are those of a format that counts pixels from one, or of rounding: they
are clipped. What is `ignored` (crowds, difficult objects) is neither learned nor counted.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deltatune.core.labels import names

TOLERANCE = 1.0
"""Pixels."""
LEAST_VISIBLE = 0.25
"""Least share of a box that a crop must leave for the box to stay."""


def problem(boxes: Any, height: int, width: int, labels: Collection[str] | None) -> str | None:
    """What is wrong with the boxes of an image of a size, or None; `labels` are the classes, where they are known.

    >>> problem([{"label": "cell", "box": [3, 3, 3, 9]}], 20, 20, None)
    'box is empty (box 1: 3, 3, 3, 9)'
    """
    if not isinstance(boxes, list | tuple):
        return f"boxes are no list ({type(boxes).__name__})"
    for number, entry in enumerate(boxes, 1):
        wrong = _wrong(entry, height, width, labels)
        if wrong is not None:
            what, _, about = wrong.partition("|")
            return f"{what} (box {number}{about})"
    return None


def _wrong(entry: Any, height: int, width: int, labels: Collection[str] | None) -> str | None:
    """What, then | and what about it."""
    corners = _corners(entry)
    if corners is None:
        return "box is no label with four numbers"
    told = f"|: {', '.join(f'{value:g}' for value in corners)}"
    if not all(map(math.isfinite, corners)):
        return f"box is not finite{told}"
    x0, y0, x1, y1 = corners
    if x1 <= x0 or y1 <= y0:
        return f"box is empty{told}"
    if min(x0, y0) < -TOLERANCE or x1 > width + TOLERANCE or y1 > height + TOLERANCE:
        return f"box is outside of the image{told} in {width} x {height} pixels"
    if min(x1, y1) <= 0 or x0 >= width or y0 >= height:
        return f"box is empty{told} in {width} x {height} pixels"
    if labels is not None and label_of(entry) not in labels:
        return f"class is unknown|: {label_of(entry)!r}"
    return None


def _corners(entry: Any) -> list[float] | None:
    """The four numbers of an entry that has a label too."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("label"), str | int) or not label_of(entry):
        return None
    box = entry.get("box")
    if not isinstance(box, list | tuple) or len(box) != 4:
        return None
    right = all(isinstance(value, int | float) and not isinstance(value, bool) for value in box)
    return [float(value) for value in box] if right else None


def label_of(entry: Mapping[str, Any]) -> str:
    """The class of an entry, as text."""
    return names(entry["label"])[0]


def learned(boxes: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The entries that count."""
    return (entry for entry in boxes if not entry.get("ignored"))


def shares(boxes: Sequence[Mapping[str, Any]], height: int, width: int) -> tuple[np.ndarray, int]:
    """Corners in shares of the image, float32 [N, 4], clipped to it; and how many boxes were clipped."""
    given_N4 = np.array([entry["box"] for entry in boxes], np.float64).reshape(-1, 4)
    sides = np.array([width, height, width, height], np.float64)
    clipped_N4 = given_N4.clip(0, sides)
    count = int((clipped_N4 != given_N4).any(1).sum())
    return (clipped_N4 / sides).astype(np.float32), count


def visible(boxes_N4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to the image (corners in shares), and which of them are still worth it, [N] of truth values."""
    clipped_N4 = boxes_N4.clip(0, 1)
    before, after = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (boxes_N4, clipped_N4))
    return clipped_N4, after >= LEAST_VISIBLE * before
