"""Mixing (mixup): two training rows shown as one, inputs and labels by one share.

    share    Beta(alpha, alpha) of a row, drawn anew at every step; the rest is another training row's
    input    share * own + (1 - share) * other
    label    the same, over the classes; a number stays a number

Paper: Zhang et al. 2018, arXiv:1710.09412.
"""

from collections.abc import Sequence

import numpy as np

Label = int | float | Sequence[float]
"""Index of a class, a number, or a share of every class."""


def blended(own: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Two arrays of one shape as one, in their own type; whole numbers are rounded.

    >>> blended(np.array([0, 100], np.uint8), np.array([100, 0], np.uint8), 0.25)
    array([75, 25], dtype=uint8)
    """
    mixed = np.float32(share) * own + np.float32(1 - share) * other
    found: np.ndarray = (np.rint(mixed) if own.dtype.kind in "iu" else mixed).astype(own.dtype)
    return found


def blended_labels(own: Label, other: Label, share: float, classes: int) -> float | list[float]:
    """Two labels as one: a share of every class, or a number.

    >>> blended_labels(0, 2, 0.75, classes=3)
    [0.75, 0.0, 0.25]
    >>> blended_labels(1.0, 3.0, 0.75, classes=0)
    1.5
    """
    one, two = (np.eye(classes)[label] if isinstance(label, int) else np.asarray(label) for label in (own, other))
    found: float | list[float] = (share * one + (1 - share) * two).tolist()
    return found
