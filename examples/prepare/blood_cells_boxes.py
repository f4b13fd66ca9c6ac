"""Blood cells: 364 microscope images with boxes of red and white cells and platelets, split as published.

BCCD of Shenggan and cosmicad, MIT: a Pascal VOC folder, 205 images for training, 87 for validation, 72 for the test.
No package brings it: `python examples/data.py blood-cells-boxes --from DIR`, where DIR holds Annotations, JPEGImages
and ImageSets. Nothing is changed: two images with an empty box stay in the lists, for the checks to find.
"""

import shutil
from pathlib import Path

PARTS = ("Annotations", "JPEGImages", "ImageSets")


def make(folder: Path, source: Path | None) -> None:
    """The VOC folder as it is."""
    if source is None or not all((source / part).is_dir() for part in PARTS):
        raise SystemExit(f"name the folder that holds {', '.join(PARTS)}: data.py blood-cells-boxes --from DIR")
    for part in PARTS:
        shutil.copytree(source / part, folder / part, copy_function=shutil.copyfile)
