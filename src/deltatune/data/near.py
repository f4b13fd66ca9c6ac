"""Near-duplicates: rows of validation or test whose input is nearly one of the training rows.

Two rows are near when their sketches overlap by J(a, b) = |a & b| / |a | b| >= t. Exact, by prefix filtering: of the
features of a row, rarest first, the first n - ceil(t n) + 1 must hold one of the other's (Chaudhuri et al. 2006). What
passes the filter is compared as sparse rows at once: features of images are in half of all rows and filter little.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
from scipy import sparse

from deltatune.core.task import Task
from deltatune.data.check import Placed

NEAR = 0.8
NONE = np.array([], np.int64)


def near(
    train: Sequence[Placed], others: Mapping[str, Sequence[Placed]], task: Task
) -> list[tuple[str, Placed, Placed]]:
    """(name of the split, its row, the nearest training row), for every row that has one."""
    known = Sketches([frozenset(task.sketch(place.row)) for place in train])
    found = []
    for name, places in others.items():
        for place in places:
            nearest, overlap = known.nearest(frozenset(task.sketch(place.row)))
            if overlap >= NEAR:
                found.append((name, place, train[nearest]))
    return found


class Sketches:
    """The features of many rows, to find the nearest one of another."""

    def __init__(self, sketches: Sequence[Collection[Hashable]]) -> None:
        counts = Counter(feature for sketch in sketches for feature in sketch)
        rarest_first = sorted(counts, key=lambda feature: (counts[feature], repr(feature)))
        self.ranks = {feature: rank for rank, feature in enumerate(rarest_first)}
        self.sizes = np.array([len(sketch) for sketch in sketches], np.int64)
        columns = np.array([self.ranks[feature] for sketch in sketches for feature in sketch], np.int32)
        starts = np.concatenate([[0], self.sizes.cumsum()])
        shape = (len(sketches), len(counts))
        self.rows = sparse.csr_array((np.ones(len(columns), np.int32), columns, starts), shape)
        holders: dict[int, list[int]] = defaultdict(list)
        for index, sketch in enumerate(sketches):
            for rank in self._prefix(sketch):
                holders[rank].append(index)
        self.holders = {rank: np.array(rows) for rank, rows in holders.items()}

    def nearest(self, sketch: Collection[Hashable]) -> tuple[int, float]:
        """The row with the largest overlap, if that is `NEAR` or more, and the overlap; else any row that is less.

        >>> Sketches(["abc", "bcdefghij", "xyz"]).nearest("abcdefghij")
        (1, 0.9)
        """
        passed = np.zeros(len(self.sizes), bool)
        for rank in self._prefix(sketch):
            passed[self.holders.get(rank, NONE)] = True
        if not passed.any():
            return 0, 0.0
        candidates = np.flatnonzero(passed)
        asked = np.zeros(len(self.ranks), np.int32)
        asked[[self.ranks[feature] for feature in sketch if feature in self.ranks]] = 1
        few = len(candidates) < len(passed) // 4  # picking rows out copies them
        shared = self.rows[candidates] @ asked if few else (self.rows @ asked)[candidates]
        overlaps = shared / (self.sizes[candidates] + len(sketch) - shared)
        best = int(overlaps.argmax())
        return int(candidates[best]), float(overlaps[best])

    def _prefix(self, sketch: Collection[Hashable]) -> list[int]:
        """The rarest features by rank, as many as can be missing from a near row, and one more; -1 for unknown ones."""
        ordered = sorted(self.ranks.get(feature, -1) for feature in sketch)
        return ordered[: len(ordered) - math.ceil(NEAR * len(ordered)) + 1] if ordered else []
