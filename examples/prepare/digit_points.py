"""Digits as points in space: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, their ink as a relief.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI, CC BY 4.0. Where there is more ink there are
more points, and they lie higher. The digits of a writer stand together in the original, each writer's behind those of
the one before: the first nine stretches are for training, two for validation, three for the test. No writer is in two.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

PARTS = {"train": range(1157), "validation": range(1157, 1415), "test": range(1415, 1797)}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POINTS = 256
HEIGHT = 0.25
"""Of full ink, as a share of the digit's side."""


def make(folder: Path, source: Path | None) -> None:
    """`<part>/<digit>/NUMBER.npy`, every one [256, 3]."""
    digits = load_digits()
    chance = np.random.default_rng(0)
    for part, numbers in PARTS.items():
        for number in numbers:
            place = folder / part / NAMES[digits.target[number]]
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / f"{number:04}.npy", relief(digits.images[number], chance))
    print(", ".join(f"{len(numbers)} digits for {part}" for part, numbers in PARTS.items()))


def relief(image: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Points under the ink of an image of 0 to 16 [POINTS, 3] in float32: x to the right, y upwards, z by the ink."""
    rows, columns = image.shape
    pixels = chance.choice(image.size, POINTS, p=image.ravel() / image.sum())
    inside = chance.random((POINTS, 2))
    x = (pixels % columns + inside[:, 0]) / columns
    y = 1 - (pixels // columns + inside[:, 1]) / rows
    ink = image.ravel()[pixels] / 16
    return np.stack([x, y, HEIGHT * ink], 1).astype(np.float32)
