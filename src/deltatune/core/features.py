"""Features: the columns of a table as numbers, by scales and vocabularies that follow from training rows.

number     the normal quantile of its rank among the training rows (or its standard score); NaN where it is missing
category   its index in the vocabulary: 0 rare or unseen, 1 missing, then the values, most frequent first
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from scipy.special import ndtri

from deltatune.core.config import Settings
from deltatune.core.labels import names, number

Kind = Literal["number", "category"]
Scaling = Literal["quantile", "standard"]
UNSEEN, ABSENT = 0, 1
SPECIAL = 2
"""Indices before those of the values."""
LANDMARKS = 101
"""Quantiles kept of a number column."""


class Reading(Settings):
    """How a cell is read."""

    missing: tuple[str, ...] = ("", "na", "n/a", "nan", "null", "none", "?", "-")
    """Words for a value that is not known, whatever their case."""
    decimal: Literal[".", ","] = "."
    """The sign before the fraction of a number."""

    def word(self, value: Any) -> str | None:
        """A value as text, whole numbers without a decimal point; None where it is missing.

        >>> Reading().word(3.0), Reading().word(" N/A "), Reading().word(float("nan"))
        ('3', None, None)
        """
        text = "" if value is None else names(value)[0]
        return None if text.casefold() in self.missing else text

    def number(self, value: Any) -> float | None:
        """The finite number that a value is or spells, or None.

        >>> Reading().number("12,5"), Reading(decimal=",").number("12,5"), Reading().number(True)
        (None, 12.5, None)
        """
        if self.decimal == "," and isinstance(value, str):
            value = value.replace(",", ".") if "." not in value else None
        return number(value)


class Feature(Settings):
    """One column: its kind and what its values become."""

    name: str
    kind: Kind
    quantiles: tuple[float, ...] = ()
    """Number: values at equal shares of the training rows, of which a rank is read; none: the standard score."""
    mean: float = 0.0
    spread: Annotated[float, Field(gt=0)] = 1.0
    values: tuple[str, ...] = ()
    """Category: the vocabulary."""
    shares: tuple[float, ...] = ()
    """Category: share of the training rows of `UNSEEN`, `ABSENT` and every value."""

    @property
    def size(self) -> int:
        """Indices of a category column."""
        return SPECIAL + len(self.values)

    def scaled(self, values: Any) -> Any:
        """Numbers [rows] on the scale of the column, float32; NaN stays NaN."""
        given = np.asarray(values, dtype=np.float64)
        if not self.quantiles:
            return ((given - self.mean) / self.spread).astype(np.float32)
        steps, ranks = np.array(self.quantiles), np.linspace(0, 1, len(self.quantiles))
        # equal quantiles: the middle of the ranks they span
        rank = 0.5 * (np.interp(given, steps, ranks) - np.interp(-given, -steps[::-1], -ranks[::-1]))
        edge = 0.5 / len(steps)
        return np.where(np.isnan(given), np.nan, ndtri(np.clip(rank, edge, 1 - edge))).astype(np.float32)

    def drawn(self, generator: np.random.Generator) -> float:
        """The scaled number or the index of a training row's value, as likely as it is there."""
        if self.kind == "category":
            return float(generator.choice(self.size, p=np.array(self.shares) / sum(self.shares)))
        if self.quantiles:
            return float(self.scaled([generator.choice(self.quantiles)])[0])
        return float(generator.standard_normal())


def described(
    name: str, values: Sequence[Any], kind: Kind, reading: Reading, scaling: Scaling, min_count: int, most: int
) -> Feature:
    """The feature that follows from a column of the training rows; rare values are left to `UNSEEN`."""
    if kind == "number":
        found = np.array([n for value in values if (n := reading.number(value)) is not None], dtype=np.float64)
        if scaling == "standard" or not len(found):
            mean, spread = (float(found.mean()), float(found.std())) if len(found) else (0.0, 1.0)
            return Feature(name=name, kind=kind, mean=mean, spread=spread or 1.0)
        steps = np.quantile(found, np.linspace(0, 1, min(LANDMARKS, max(2, len(found)))))
        return Feature(name=name, kind=kind, quantiles=tuple(np.maximum.accumulate(steps).tolist()))
    words = Counter(word for value in values if (word := reading.word(value)) is not None)
    kept = [word for word, count in words.most_common(most) if count >= min_count]
    absent = len(values) - words.total()
    counts = [words.total() - sum(words[word] for word in kept), absent, *(words[word] for word in kept)]
    return Feature(
        name=name, kind=kind, values=tuple(kept), shares=tuple(count / max(1, len(values)) for count in counts)
    )


class Features:
    """Columns a network reads, as two arrays: numbers, and categories by their place in one table of values.

    `known` are those of a pretrained network, `added` those it did not have; each group has a table of its own.
    """

    def __init__(self, known: Sequence[Feature], added: Sequence[Feature], reading: Reading) -> None:
        self.reading = reading
        groups = [[f for f in group if f.kind == kind] for kind in ("number", "category") for group in (known, added)]
        self.numbers, self.categories = groups[0] + groups[1], groups[2] + groups[3]
        self.offsets = [*_starts(groups[2]), *_starts(groups[3])]

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, dict[str, Counter[str]]]:
        """Numbers [rows, N], indices [rows, C], and what could not be used by column: no numbers, or unseen values.

        A column that a row does not have is missing.
        """
        odd: dict[str, Counter[str]] = {}
        numbers = np.full((len(rows), len(self.numbers)), np.nan, dtype=np.float32)
        indices = np.zeros((len(rows), len(self.categories)), dtype=np.int64)
        for place, feature in enumerate(self.numbers):
            values = [row.get(feature.name) for row in rows]
            read = [self.reading.number(value) for value in values]
            numbers[:, place] = feature.scaled([np.nan if value is None else value for value in read])
            odd[feature.name] = Counter(
                word
                for value, found in zip(values, read, strict=True)
                if found is None and (word := self.reading.word(value)) is not None
            )
        for place, (feature, offset) in enumerate(zip(self.categories, self.offsets, strict=True)):
            known = {value: SPECIAL + index for index, value in enumerate(feature.values)}
            words = [self.reading.word(row.get(feature.name)) for row in rows]
            found = [ABSENT if word is None else known.get(word, UNSEEN) for word in words]
            indices[:, place] = np.array(found, dtype=np.int64) + offset
            odd[feature.name] = Counter(word for word in words if word is not None and word not in known)
        return numbers, indices, {name: counts for name, counts in odd.items() if counts}


def _starts(group: Sequence[Feature]) -> Iterator[int]:
    """Where the values of each column begin in the table of its group."""
    start = 0
    for feature in group:
        yield start
        start += feature.size
