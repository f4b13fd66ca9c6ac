"""Drawing: boxes with their names on an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltatune.core.extras import extra

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6", "#808000", "#000075")
"""One per class, again from the first for the eleventh: told apart on light and dark ground, with white letters."""


def boxes_on(pixels_HWC: np.ndarray, boxes: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Any:
    """A Pillow image of the pixels (uint8 RGB) with a frame, the class and the score of every box.

    Lines and letters grow with the image. Better boxes are drawn later, over the others.
    """
    image = extra("PIL.Image", "vision").fromarray(pixels_HWC)
    canvas = extra("PIL.ImageDraw", "vision").Draw(image)
    side = min(image.size)
    line = max(1, round(side / 250))
    font = extra("PIL.ImageFont", "vision").load_default(size=max(9, side / 40))
    for entry in sorted(boxes, key=lambda entry: entry.get("score", 1.0)):
        place = labels.index(entry["label"]) if entry["label"] in labels else 0
        colour = COLOURS[place % len(COLOURS)]
        x0, y0, x1, y1 = entry["box"]
        canvas.rectangle((x0, y0, x1, y1), outline=colour, width=line)
        text = entry["label"] + (f" {entry['score']:.2f}" if "score" in entry else "")
        _, _, across, down = canvas.textbbox((0, 0), text, font=font)
        top = y0 - down - 2 * line if y0 >= down + 2 * line else y0
        canvas.rectangle((x0, top, x0 + across + 2 * line, top + down + 2 * line), fill=colour)
        canvas.text((x0 + line, top + line), text, fill="white", font=font)
    return image
