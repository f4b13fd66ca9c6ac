"""Blood cells cut out of 364 smears (BCCD): red cells, white cells and platelets, as many of each.

BCCD, https://github.com/Shenggan/BCCD_Dataset, MIT: photos of smears with a box and a type for every cell, in Pascal
VOC XML. No package brings it: `python examples/data.py blood-cells --from DIR`, where DIR holds Annotations/ and
JPEGImages/, or a folder BCCD with them.

A crop is the square around a box with a margin of 15 % on each side, moved into the photo where it would leave it. Red
cells are by far the most (4,153 of 4,886): as many are drawn as there are of the others on average. The column `image`
names the photo, so that all crops of one stay in one split (`data.group_column`).
"""

import csv
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

MARGIN = 0.15
SEED = 42
COMMON = "RBC"

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


def make(folder: Path, source: Path | None) -> None:
    """cells.csv with the columns path, label and image, and the crops in cells/."""
    from PIL import Image

    root = next(
        (place for place in (source, source and source / "BCCD") if place and (place / "JPEGImages").is_dir()), None
    )
    if root is None:
        raise SystemExit("name the folder that holds JPEGImages: python examples/data.py blood-cells --from DIR")
    chosen = _balanced([cell for file in sorted((root / "Annotations").glob("*.xml")) for cell in _cells(file)])
    (folder / "cells").mkdir()
    rows = []
    for photo, number, label, box in chosen:
        with Image.open(root / "JPEGImages" / f"{photo}.jpg") as image:
            path = f"cells/{photo}_{number:02}.png"
            image.crop(_square(box, *image.size)).save(folder / path)
        rows.append((path, label, photo))
    with (folder / "cells.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "image"), *rows])
    print(f"{len(rows)} crops of {len({photo for *_, photo in rows})} photos")


Cell = tuple[str, int, str, Box]
"""Photo, number of the box in it, type, box."""


def _cells(file: Path) -> list[Cell]:
    """The boxes of a photo; two boxes of the data set have no area and are no cells."""
    found = []
    for number, thing in enumerate(ElementTree.parse(file).getroot().iter("object")):
        left, top, right, bottom = (
            int(thing.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        if right > left and bottom > top:
            found.append((file.stem, number, thing.findtext("name", ""), (left, top, right, bottom)))
    return found


def _balanced(cells: list[Cell]) -> list[Cell]:
    rare = [cell for cell in cells if cell[2] != COMMON]
    common = [cell for cell in cells if cell[2] == COMMON]
    drawn = np.random.default_rng(SEED).choice(len(common), len(rare) // 2, replace=False)
    return sorted([*rare, *(common[index] for index in drawn)])


def _square(box: Box, width: int, height: int) -> Box:
    """The square around a box, inside of a photo."""
    left, top, right, bottom = box
    side = min(round(max(right - left, bottom - top) * (1 + 2 * MARGIN)), width, height)
    x = min(max((left + right - side) // 2, 0), width - side)
    y = min(max((top + bottom - side) // 2, 0), height - side)
    return x, y, x + side, y + side
