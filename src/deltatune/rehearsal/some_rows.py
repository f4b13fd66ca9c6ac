"""Some rows: drawn by a seed and in random order, so that the first few stand for all of them; and where rows stand."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deltatune.core.task import Row
from deltatune.data.load import Splits

MOST_HELD_OUT, FEWEST_HELD_OUT = 500, 20
"""Rows of validation and of test."""


def sampled(splits: Splits, most: int, seed: int) -> Splits:
    """The splits with at most so many training rows, and a fifth of that held out."""
    held_out = max(FEWEST_HELD_OUT, min(MOST_HELD_OUT, most // 5))
    train, validation, test = (
        drawn(rows, most if name == "train" else held_out, seed) for name, rows in splits.parts.items()
    )
    counts = {"train": len(train), "validation": len(validation), "test": len(test)}
    return replace(splits, train=train, validation=validation, test=test, accounts=splits.accounts.drawn(counts))


def drawn(rows: Sequence[Row], most: int, seed: int = 0) -> list[Row]:
    """Some rows in random order."""
    return [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))[:most].tolist()]


def place_of(row: Row, splits: Splits) -> str:
    """`file:line` of a row, the file relative to the current folder where it lies below."""
    place = splits.places[id(row)]
    path = os.path.relpath(place.file) if os.path.exists(place.file) else place.file
    return f"{place.file if path.startswith('..') else path}:{place.line}"
